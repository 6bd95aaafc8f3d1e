"""Train with and without latent-space hard examples on nuclei of one microscope, then test on others.

On generated images, in a minute on two cores; or on those of the 2018 Data Science Bowl, on a CPU:

    python examples/nuclei_cooperative.py
    python examples/nuclei_cooperative.py --data stage1_train --preset cpu --augment none gin

An interrupted run goes on when it is started again in the same way, also after a kill or a power cut. Two methods may
train side by side in one output folder, `--methods plain` here and `--methods default` there; the table shows all that
are done. Any of these settings may come from a file: `--config run.toml`, as each run leaves one behind.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from nuclei.run import one_by_one, parse, run
from study.data.frame import DataError
from study.report import compare_runs
from study.report.conclusion import conclude


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", sys.argv[0], *arguments])
    try:
        folders = []
        for one in one_by_one(parse(arguments, about=__doc__)):
            outputs = run(one, command)
            conclude(outputs, summary=True)
            folders.append(str(outputs.folder))
        if len(folders) > 1:
            return compare_runs.main([*folders, "--summary"])
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nInterrupted. What is done is kept; to go on: {command}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
