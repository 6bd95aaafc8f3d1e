"""What the page's pictures show, read back from their markup."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cardiac.data.preprocess import Labels
from study.domains import CARDIAC
from study.report.figures import LABEL, PREDICTION, Span, case_picture, forest
from study.run.cases import Case


def case_of(labels: Labels, prediction: Labels) -> Case:
    image = np.add.outer(np.arange(labels.shape[0]), 2 * np.arange(labels.shape[1])).astype(np.uint8)
    return Case("ACDC", "007", "ED", "FTN", 0.5, image, labels, prediction)


def blocks(*corners: tuple[int, ...]) -> Labels:
    """The left ventricle, its wall around it and the right ventricle, with the upper left corner at each place."""
    labels = np.zeros((40, 60), np.uint8)
    for top, left in corners:
        labels[top : top + 6, left : left + 6] = 2
        labels[top + 2 : top + 4, left + 2 : left + 4] = 1
        labels[top + 1 : top + 3, left + 8 : left + 12] = 3
    return labels


def numbers(pattern: str, text: str) -> list[float]:
    (found,) = re.findall(pattern, text)
    return [float(number) for number in (found.split() if isinstance(found, str) else found)]


def borders(svg: str, colour: str) -> Any:
    """The corners (left, top, right, bottom) in pixels of every border of a colour."""
    (path,) = re.findall(f'<path d="([^"]*)" stroke="{colour}"', svg)
    found = []
    for line in path.split("M")[1:]:
        points = np.array(re.findall(r"-?\d+", line), float).reshape(-1, 2).cumsum(0) / 2
        assert np.array_equal(points[0], points[-1])
        found.append((*points.min(0), *points.max(0)))
    return found


def test_contours_go_around_what_is_labelled() -> None:
    labels, prediction = blocks((10, 20)), blocks((11, 22))
    svg = case_picture(case_of(labels, prediction), CARDIAC)
    assert "scale(0.5)" in svg
    assert borders(svg, LABEL) == [(22, 12, 24, 14), (20, 10, 26, 16), (28, 11, 32, 13)]
    assert borders(svg, PREDICTION) == [(24, 13, 26, 15), (22, 11, 28, 17), (30, 12, 34, 14)]


@pytest.mark.parametrize("corner", [(10, 20), (0, 0), (34, 48)])
def test_the_image_is_cropped_to_what_is_seen_of_it_and_lies_where_it_did(corner: tuple[int, int]) -> None:
    case = case_of(blocks(corner), blocks(corner))
    svg = case_picture(case, CARDIAC)
    x, y, side, _ = numbers(r'viewBox="([^"]*)"', svg)
    left, top, width, height = (int(n) for n in numbers(r' x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', svg))
    rows, columns = case.image.shape
    assert left <= max(0, x) < left + 1
    assert top <= max(0, y) < top + 1
    assert min(x + side, columns) <= left + width < min(x + side, columns) + 1
    assert min(y + side, rows) <= top + height < min(y + side, rows) + 1
    (source,) = re.findall(r"base64,([^\"]*)", svg)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("L"), float)
    assert shown == pytest.approx(case.image[top : top + height, left : left + width], abs=4)


def test_a_forest_plot_names_its_rows_and_scales_with_their_number() -> None:
    spans = [Span("ACDC", 1.0, 0.5, 1.5), Span("average (shifted)", -1.0, -3.0, 1.0)]
    few, many = (forest("a < b", some, "#123456", xlabel="points", limits=(-4, 2)) for some in (spans, spans * 5))
    assert all(words in few for words in ("a &lt; b", "ACDC", "average (shifted)", "points", "#123456"))
    heights = [numbers(r'viewBox="([^"]*)"', svg)[3] for svg in (few, many)]
    assert heights[1] > 2 * heights[0]
