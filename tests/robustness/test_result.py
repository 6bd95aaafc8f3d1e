"""What was measured, as numbers, text, JSON, a page and a figure."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from latentaug.robustness import Robustness
from latentaug.robustness.result import interval


def two_models() -> Robustness:
    return Robustness(
        {
            ("plain", "none", 0): [0.9, 0.8, math.nan],
            ("ours", "none", 0): [0.9, 0.9, math.nan],
            ("plain", "blur", 1): [0.5, 0.7, 0.05],
            ("ours", "blur", 1): [0.6, 0.9, 0.25],
            ("plain", "a|b", 2): [0.0, 0.1, 0.3],
            ("ours", "a|b", 2): [0.2, 0.3, 0.5],
        }
    )


def test_cells_are_means_over_cases_with_gains_over_the_first_model() -> None:
    found = two_models()
    assert found.cell("plain").dice == pytest.approx(0.85)
    blurred = found.cell("ours", "blur", 1)
    assert blurred.gain == pytest.approx((0.1 + 0.2 + 0.2) / 3)
    assert blurred.gain_low is not None
    assert 0.1 - 1e-9 <= blurred.gain_low <= blurred.gain <= (blurred.gain_high or 0) <= 0.2 + 1e-9
    assert found.cell("plain", "blur", 1).gain is None
    assert found.average("plain").dice == pytest.approx((0.25 + 0.4 + 0.175) / 3)
    assert found.average("plain").failures == pytest.approx(2 / 6)
    assert found.average("ours").failures == 0


def test_a_case_without_labels_counts_in_the_gain_where_one_model_finds_something_there() -> None:
    scores = {("fp", "none", 0): [0.8, 0.0, math.nan], ("good", "none", 0): [0.8, math.nan, math.nan]}
    found = Robustness(scores)
    assert found.cell("good").gain == pytest.approx(0.5)
    assert found.cell("good").dice == pytest.approx(0.8)
    other_way_round = Robustness(dict(reversed(scores.items())))
    assert other_way_round.cell("fp").gain == pytest.approx(-0.5)


@pytest.mark.parametrize("name", ["réseau", "a$x^$", "100 %"])
def test_a_report_is_written_whatever_a_model_is_called(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = Robustness({(name, "none", 0): [0.9, 0.8], (name, "blur", 1): [0.5, 0.7]})
    found.write(tmp_path)
    assert name in (tmp_path / "robustness.html").read_text(encoding="utf-8")
    assert name in (tmp_path / "robustness.md").read_text(encoding="utf-8")
    assert (tmp_path / "robustness.png").stat().st_size > 1000


def test_the_table_has_a_line_for_each_shift_and_severity_and_escapes_names() -> None:
    text = two_models().to_markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert "| a/b | 2 |" in text
    assert "| average of shifts |" in text
    assert "+16.7 (" in text
    assert "33.3 %" in text


def test_it_is_shown_in_a_line_and_on_a_page() -> None:
    assert (
        repr(two_models())
        == "Robustness(2 models, 2 shifts, 3 cases: plain 0.850, shifted 0.275; ours 0.900, shifted 0.458)"
    )
    assert "<td>blur</td>" in two_models()._repr_html_()


def test_json_holds_every_case_and_is_no_json_of_nans() -> None:
    read = json.loads(two_models().to_json(), parse_constant=pytest.fail)
    assert read["scores"][0] == {"model": "plain", "shift": "none", "severity": 0, "dice": [0.9, 0.8, None]}
    assert {cell["shift"] for cell in read["cells"]} == {"none", "blur", "a|b", "average"}


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = two_models().write(tmp_path / "new" / "report")
    assert {path.name for path in folder.iterdir()} == {f"robustness.{kind}" for kind in ("json", "md", "html", "png")}
    assert (folder / "robustness.png").read_bytes()[:4] == b"\x89PNG"
    assert "robustness.png" in (folder / "robustness.html").read_text()


def test_intervals_leave_out_nan_and_of_none_there_is_none() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    mean, low, high = interval(np.append(values, np.nan))
    assert mean == pytest.approx(values.mean())
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    assert all(map(math.isnan, interval(np.array([np.nan]))))


def test_of_clean_images_alone_there_is_no_average() -> None:
    found = Robustness({("unet", "none", 0): [0.5, 0.7]})
    assert repr(found) == "Robustness(1 model, 0 shifts, 2 cases: unet 0.600)"
    assert len(found.cells) == 1


def test_where_there_is_nothing_to_be_found_json_has_null_and_the_table_a_dash() -> None:
    found = Robustness({("one", "none", 0): [math.nan], ("other", "none", 0): [math.nan]})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(found.to_json(), parse_constant=refuse)
    assert [cell["dice"] for cell in read["cells"]] == [None, None]
    assert read["cells"][1]["gain"] is None
    assert "| none |  | - | - | - |" in found.to_markdown()
