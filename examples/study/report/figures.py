"""Figures that a page holds in itself: plots and contours as inline SVG, in the page's own colours, images as JPEG."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from contourpy import contour_generator
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imsave

from latentaug.plot import COLOURS
from study.domains import Domain
from study.run.cases import Case
from study.run.moments import Moment

LABEL, PREDICTION = "#56b4e9", "#e69f00"
"""Colours of the two contours on a case."""
HUES = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"),
    *("#b15928", "#7aa622", "#e7298a", "#17a8b8"),
)
"""Colours of methods, all of them readable on white and on black."""
DASHES = ("-", "--", ":")
"""Line styles of draws."""

Bytes = npt.NDArray[np.uint8]

_INK = "#010203"  # stands for the text colour of the page, which is dark or light
_STYLE: Any = {  # matplotlib names all keys that it knows
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    "axes.grid": True,
    "grid.color": "#7f7f7f",
    "grid.alpha": 0.25,
    "font.size": 8,
    "svg.fonttype": "none",
    "text.parse_math": False,
}


class Line(NamedTuple):
    """One line of a panel."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dash: str = "-"


class Span(NamedTuple):
    """One row of a forest plot: a mean and its interval, which has no length where there is none."""

    name: str
    mean: float
    low: float
    high: float


def hues(methods: Sequence[str]) -> dict[str, str]:
    """Give every method a colour."""
    return {method: HUES[number % len(HUES)] for number, method in enumerate(methods)}


def panel(
    title: str,
    lines: Sequence[Line],
    *,
    xlabel: str = "",
    categories: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
) -> Markup:
    """Draw lines as inline SVG, over numbers or, where `categories` are given, over these; NaN leaves a gap."""
    with rc_context({**_STYLE, "svg.hashsalt": f"{title} {lines}"}):
        figure = Figure(figsize=(3.0, 2.1))
        axes = figure.add_axes((0.15, 0.2, 0.82, 0.67))
        for line in lines:
            look: dict[str, Any] = {"color": line.colour, "linestyle": line.dash, "linewidth": 1.3}
            axes.plot(line.x, line.y, marker="o" if len(line.x) < 12 else None, markersize=3, **look)
        if categories:
            axes.set_xticks(range(len(categories)), categories)
            axes.set_xlim(-0.3, len(categories) - 0.7)
        if limits is not None:
            axes.set_ylim(limits)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel(xlabel)
        return _svg(figure, title)


def forest(title: str, spans: Sequence[Span], colour: str, *, xlabel: str, limits: tuple[float, float]) -> Markup:
    """Draw numbers with their intervals as inline SVG, one below the other, and a line at 0."""
    with rc_context({**_STYLE, "axes.spines.left": False, "svg.hashsalt": f"{title} {spans}"}):
        height = 0.75 + 0.2 * len(spans)
        left = min(0.5, 0.03 + 0.021 * max(len(span.name) for span in spans))
        figure = Figure(figsize=(3.0, height))
        axes = figure.add_axes((left, 0.45 / height, 0.97 - left, 0.2 * len(spans) / height))
        axes.axvline(0, color=_INK, linewidth=0.8)
        for row, span in enumerate(spans):
            axes.plot((span.low, span.high), (row, row), color=colour, linewidth=1.3)
            axes.plot(span.mean, row, marker="o", markersize=4, color=colour)
        axes.set_yticks(range(len(spans)), [span.name for span in spans])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(spans) - 0.5, -0.5)
        axes.set_xlim(limits)
        axes.set_xlabel(xlabel)
        figure.suptitle(title, fontsize=9, y=1 - 0.06 / height)
        return _svg(figure, title)


def case_picture(case: Case, domain: Domain) -> Markup:
    """Draw a case as inline SVG, with the contours of its labels and of its prediction."""
    paths = [
        Markup('<path d="{}" stroke="{}" vector-effect="non-scaling-stroke"/>').format(
            _contours(labels, domain.outlines), colour
        )
        for labels, colour in ((case.labels, LABEL), (case.prediction, PREDICTION))
    ]
    inside = ((case.labels > 0) | (case.prediction > 0)) & domain.cropped
    x, y, side = _around(inside)
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    shown = case.image[top : math.ceil(y + side), left : math.ceil(x + side)]
    alt = f"{case.column}, {domain.case} {case.patient}, {case.phase}, Dice {case.dice:.3f}"
    return Markup(
        '<svg role="img" aria-label="{}" viewBox="{:g} {:g} {:g} {:g}">'
        '<image href="{}" x="{}" y="{}" width="{}" height="{}"/>'
        '<g transform="scale(0.5)" fill="none" stroke-width="1.5">{}</g></svg>'
    ).format(alt, x, y, side, side, _jpeg(shown), left, top, *shown.shape[::-1], Markup("").join(paths))


def slices_picture(moment: Moment) -> Markup:
    """Draw the slices themselves, a row for each: the image, and its labels on it."""
    return _pairs(moment.images, moment.images, moment.labels, "validation slices and their labels")


def moment_picture(moment: Moment) -> Markup:
    """Draw the hard examples of one moment, a row for each slice: hard image, and hard segmentation on the slice."""
    alt = f"hard images and hard segmentations at iteration {moment.iteration}"
    return _pairs(moment.hard_images, moment.images, moment.hard_segmentations, alt)


def _pairs(left: Bytes, right: Bytes, labels: Bytes, alt: str) -> Markup:
    """Put images [slices, H, W] beside others with labels on them."""
    height, width = left.shape[1:]
    painted = np.array([(0, 0, 0), *map(to_rgb, COLOURS)])[labels] * 255
    opacity = np.where(labels > 0, 0.55, 0)[..., None]
    rows = np.concatenate((left[..., None].repeat(3, 3), right[..., None] * (1 - opacity) + painted * opacity), axis=2)
    picture = rows.reshape(-1, 2 * width, 3).round().astype(np.uint8)
    source = _jpeg(picture)
    return Markup('<img alt="{}" src="{}" width="{}" height="{}">').format(alt, source, 2 * width, len(left) * height)


def _contours(labels: Bytes, outlines: Sequence[Sequence[int]]) -> str:
    """The outlines of what has some labels together, for each of several such sets, as an SVG path.

    A border that two structures share is drawn once. The unit is half a pixel, in which all points of a border are
    whole: from each to the next it is a step or two, and a page holds hundreds of borders.
    """
    lines: list[npt.NDArray[np.float64]] = []
    for together in outlines:
        padded = np.pad(np.isin(labels, together).astype(float), 1)
        borders: Any = contour_generator(z=padded).lines(0.5)
        lines += borders
    paths = []
    for line in lines:
        points = (2 * line - 1).round().astype(int)  # pixel centres lie at halves, as in SVG's images
        start, steps = points[0], np.diff(points, axis=0)
        paths.append(f"M{start[0]} {start[1]}l{' '.join(f'{x} {y}' for x, y in steps)}".replace(" -", "-"))
    return "".join(paths)


def _around(inside: npt.NDArray[np.bool_]) -> tuple[float, float, float]:
    """Corner (x, y) and side of a square with some room around what is inside; around all of it, if nothing is."""
    rows, columns = np.nonzero(inside)
    if not rows.size:
        (height, width), whole = inside.shape, max(inside.shape)
        return (width - whole) / 2, (height - whole) / 2, float(whole)
    side = 1.2 * max(np.ptp(rows), np.ptp(columns)) + 8
    return *((found.min() + found.max() + 1 - side) / 2 for found in (columns, rows)), float(side)


def _jpeg(picture: Bytes) -> str:
    file = io.BytesIO()
    imsave(file, picture, cmap="gray", vmin=0, vmax=255, format="jpeg", pil_kwargs={"quality": 80})
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _svg(figure: Figure, title: str) -> Markup:
    """Return a figure as an element of the page: as wide as there is room, without identifiers that others may have."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = re.sub(r'<style.*?</style>|(?<=<g) id="[^"]*"', "", file.getvalue(), flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    start = re.search(r'<svg[^>]*(viewBox="[^"]*")[^>]*>', text)
    assert start is not None
    return Markup(f'<svg role="img" aria-label="{escape(title)}" {start[1]}>{text[start.end() :]}')
