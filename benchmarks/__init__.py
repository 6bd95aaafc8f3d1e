"""What latentaug costs: time, memory and arithmetic, each against a yardstick of the same run.

`python -m benchmarks` runs every part, `python -m benchmarks step memory flops` some; `--help` tells the rest.
"""
