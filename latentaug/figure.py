"""Figures that show where they are made: in a script by `savefig`, in a notebook without magic."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which a notebook shows whether or not pyplot was imported.

    Nothing is registered with pyplot, so that it neither stays in memory nor shows a second time.

    Raises:
        ImportError: matplotlib is missing.

    Example:
        >>> new_figure(2, 1)._repr_png_()[1:4]
        b'PNG'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    vars(figure)["_repr_png_"] = functools.partial(_png, figure)
    return figure


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
