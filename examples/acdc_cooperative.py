"""Train with and without latent-space hard examples on cardiac MR, then test on artefacts and on other scanners.

On a generated phantom, in minutes on two cores; or the paper's protocol on real data, on a GPU:

    python examples/acdc_cooperative.py
    python examples/acdc_cooperative.py --acdc DIR --mnms DIR --preset paper

An interrupted run goes on when it is started again in the same way, also after a kill or a power cut. Two methods may
train side by side in one output folder, `--methods standard` here and `--methods cooperative` there; the table shows
all that are done. Any of these settings may come from a file: `--config run.toml`, as each run leaves one behind.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from cardiac.data import DataError
from cardiac.report.conclusion import conclude
from cardiac.run.arguments import one_by_one, parse
from cardiac.run.experiment import run
from study.report import compare_runs
from study.report.published import read_published


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", sys.argv[0], *arguments])
    try:
        options = parse(arguments, about=__doc__)
        published = [] if options.published is None else read_published(options.published)
        folders = []
        for one in one_by_one(options):
            outputs = run(one, command)
            conclude(outputs, published)
            folders.append(str(outputs.folder))
        if len(folders) > 1:
            return compare_runs.main(folders)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is kept; to go on: {command}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
