"""Seeds of the campaigns: of today, so that every day's run sees what no other has seen; and how much is tried.

The environment overrides both: `LATENTAUG_SEED`, which a failure prints, and `LATENTAUG_NETWORKS`,
`LATENTAUG_SEQUENCES` and `LATENTAUG_KILLS`.
"""

from __future__ import annotations

import os
from datetime import date


def seed() -> int:
    """Return the seed of today, or the one that is asked for."""
    return int(os.environ.get("LATENTAUG_SEED") or date.today().toordinal())


def count(what: str, usual: int) -> int:
    """Return how many networks, sequences or kills are asked for, or how many are usual."""
    return int(os.environ.get(f"LATENTAUG_{what.upper()}") or usual)


def shares(total: int, parts: int) -> list[range]:
    """Cut the numbers below a total into parts, which the processes of a run may share."""
    return [range(total * part // parts, total * (part + 1) // parts) for part in range(parts)]
