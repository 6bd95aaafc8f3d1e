"""Processes that train together, as tests start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def found_by_ranks(script: str | Path, count: int, folder: Path, *, timeout: float = 540, safely: bool = True) -> Any:
    """Run a script once for each rank, and return what each has left in `rank{number}.pt`, by rank.

    Args:
        script: Is given its rank, their count and the folder.
        count: How many ranks.
        folder: Where they leave what they found.
        timeout: Seconds that each may take.
        safely: Whether what they left is read without running code.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(count), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=timeout)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=safely) for rank in range(count)]
