"""A backend of `torch.compile` that counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Graphs:
    """Counts the graphs that it is given, and how often they run."""

    def __init__(self) -> None:
        self.runs = 0
        self.count = 0

    def __call__(self, graph: Any, example: Any) -> Callable[..., Any]:
        self.count += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run
