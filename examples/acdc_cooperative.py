"""Train with and without latent-space hard examples on cardiac MR, then test on artefacts and on other scanners.

On a generated phantom, in minutes on two cores; or the paper's protocol on real data, on a GPU:

    python examples/acdc_cooperative.py
    python examples/acdc_cooperative.py --acdc DIR --mnms DIR --preset paper

An interrupted run goes on when it is started again in the same way, also after a kill or a power cut. Two methods may
train side by side in one output folder, `--methods standard` here and `--methods cooperative` there; the table shows
all that are done. Any of these settings may come from a file: `--config run.toml`, as each run leaves one behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cardiac.report.conclusion import conclude
from cardiac.run.arguments import one_by_one, parse
from cardiac.run.experiment import run
from study.report.command import run_study
from study.report.published import read_published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return the exit code."""
    return run_study(runs, arguments)


def runs(arguments: Sequence[str], command: str) -> Iterator[Path]:
    """Run what the arguments ask for, one after the other, and yield the folders."""
    options = parse(arguments, about=__doc__)
    published = [] if options.published is None else read_published(options.published)
    for one in one_by_one(options):
        outputs = run(one, command)
        conclude(outputs, published)
        yield outputs.folder


if __name__ == "__main__":
    sys.exit(main())
