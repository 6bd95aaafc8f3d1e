"""Print the folder of the trainers, for `nnUNet_extTrainer`."""

from pathlib import Path

print(Path(__file__).resolve().parent / "trainers")
