"""Draw what methods gain over the network alone with the same augmentation, column by column.

python examples/draw_gains.py runs/unet-gin runs/nuclei-gin --output gains.png
python examples/draw_gains.py --help
"""

import sys

from study.report.gains import main

if __name__ == "__main__":
    sys.exit(main())
