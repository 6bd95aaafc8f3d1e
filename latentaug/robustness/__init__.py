"""How a trained model holds up under shifts that it never saw: `latentaug.robustness.measure`, and a command.

    python -m latentaug.robustness mine.py:models mine.py:loader --num-classes 4 --output report

Nothing is trained, and the models may be any.
"""

from latentaug.robustness.measure import measure
from latentaug.robustness.result import Cell, Robustness
from latentaug.robustness.shifts import SEVERITIES, Shift, intensity_shifts, mr_artefacts

__all__ = ["SEVERITIES", "Cell", "Robustness", "Shift", "intensity_shifts", "measure", "mr_artefacts"]
