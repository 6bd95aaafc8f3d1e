"""The command line of a study: its runs one after the other, their comparison, and the exit code."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from study.data.frame import DataError
from study.report import compare_runs


def run_study(
    runs: Callable[[Sequence[str], str], Iterable[Path]], arguments: Sequence[str] | None, compared: Sequence[str] = ()
) -> int:
    """Run a study, compare its runs where there are several, and return the exit code.

    Args:
        runs: Given the arguments, and the command as it would be typed, runs one after the other; yields their folders.
        arguments: What follows the script's name. Default: as the process was started.
        compared: Flags for the comparison.

    Returns:
        0, 2 where a setting or the data are wrong, or 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", sys.argv[0], *arguments])
    try:
        folders = [str(folder) for folder in runs(arguments, command)]
        if len(folders) > 1:
            return compare_runs.main([*folders, *compared])
    except (DataError, RuntimeError) as error:
        if not (isinstance(error, DataError) or type(error).__name__ == "FolderInUseError"):  # which is not public
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is kept; to go on: {command}", file=sys.stderr)
        return 130
    return 0
