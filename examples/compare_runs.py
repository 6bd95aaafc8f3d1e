"""Compare what several runs of the studies have trained, whatever settings they differ in.

python examples/compare_runs.py runs/unet runs/unet-fine-code
python examples/compare_runs.py --help
"""

import sys

from study.report.compare_runs import main

if __name__ == "__main__":
    sys.exit(main())
