from __future__ import annotations

import math

import pytest
from scipy.stats import spearmanr

from study.report.summary import correlation, summary_grid
from study.run.scores import Score


def scores(method: str, column: str, dice: list[float], confidence: list[float] | None = None) -> list[Score]:
    found = []
    for number, value in enumerate(dice):
        about = (method, 0, "Unet", column, f"image-{number}", "", "nuclei")
        found.append(Score(*about, "dice", value))
        if confidence is not None:
            found.append(Score(*about, "confidence", confidence[number]))
            found.append(Score(*about, "ece", abs(confidence[number] - value)))
    return found


def test_a_line_has_every_figure_in_domain_and_over_shifts() -> None:
    given = [
        *scores("plain", "fluo256", [0.8, 0.9, 0.7], [0.85, 0.95, 0.8]),
        *scores("plain", "fluo360", [0.05, 0.4, 0.6], [0.9, 0.8, 0.95]),
        *scores("plain", "fluo520", [0.5, 0.5, 0.08]),
        *scores("plain", "inverted/stained", [0.0, 0.2, 0.1]),
    ]
    head, line = summary_grid(given, {"plain": 1.0})
    row = dict(zip(head, line, strict=True))
    assert [*row][:8] == [
        "method",
        "draws",
        "cost in plain steps",
        "fluo256",
        "fluo360",
        "fluo520",
        "shifts",
        "inverted/stained",
    ]
    assert row["fluo256"] == "0.800"
    assert row["shifts"] == "0.355"  # columns weigh alike: 0.35 and 0.36
    assert row["inverted/stained"] == "0.100"
    assert row["failures, fluo256"] == "0.000"
    assert row["failures, shifts"] == "0.333"
    assert row["HD95, shifts"] == ""
    assert row["ECE, fluo256"] == "0.0667"
    assert row["correlation, fluo256"] == "1.00"
    assert row["correlation, shifts"] == "0.50"


def test_draws_weigh_alike_and_the_shape_prior_is_left_out() -> None:
    given = scores("plain", "ACDC", [0.8]) + [s._replace(draw=1, value=0.6) for s in scores("plain", "ACDC", [0.0] * 3)]
    given += [s._replace(stage="Unet+STN", value=0.1) for s in scores("plain", "ACDC", [0.0])]
    head, line = summary_grid(given)
    assert dict(zip(head, line, strict=True))["ACDC"] == "0.700"


def test_the_correlation_is_spearmans() -> None:
    one, other = [0.1, 0.5, 0.3, 0.3, 0.9], [0.2, 0.1, 0.6, 0.5, 0.5]
    assert correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert math.isnan(correlation([1, 1, 1], [1, 2, 3]))
