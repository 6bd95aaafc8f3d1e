"""When, where and with which versions a training ran."""

from __future__ import annotations

import platform
from datetime import datetime
from importlib.metadata import version

import numpy as np

import latentaug


def environment(command: str) -> dict[str, str]:
    """Return date, command, system and versions; for `done.json`."""
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": command,
        "python": platform.python_version(),
        "system": platform.platform(),
        "latentaug": latentaug.__version__,
        "numpy": np.__version__,
        "torchio": version("torchio"),
    }
