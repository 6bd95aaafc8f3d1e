"""Train with and without latent-space hard examples on nuclei of one microscope, then test on others.

On generated images, in a minute on two cores; or on those of the 2018 Data Science Bowl, on a CPU:

    python examples/nuclei_cooperative.py
    python examples/nuclei_cooperative.py --data stage1_train --preset cpu --augment none gin

An interrupted run goes on when it is started again in the same way, also after a kill or a power cut. Two methods may
train side by side in one output folder, `--methods plain` here and `--methods default` there; the table shows all that
are done. Any of these settings may come from a file: `--config run.toml`, as each run leaves one behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nuclei.run import one_by_one, parse, run
from study.report.command import run_study
from study.report.conclusion import conclude
from study.report.page import write_page


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return the exit code."""
    return run_study(runs, arguments, ["--summary"])


def runs(arguments: Sequence[str], command: str) -> Iterator[Path]:
    """Run what the arguments ask for, one after the other, and yield the folders."""
    for one in one_by_one(parse(arguments, about=__doc__)):
        outputs = run(one, command)
        conclude(outputs, summary=True, page=write_page)
        yield outputs.folder


if __name__ == "__main__":
    sys.exit(main())
