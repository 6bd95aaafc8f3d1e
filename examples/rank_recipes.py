"""See whether validation ranks what several runs of the studies have trained as the tests do.

python examples/rank_recipes.py runs/none runs/gin
python examples/rank_recipes.py --help
"""

import sys

from study.report.ranking import main

if __name__ == "__main__":
    sys.exit(main())
