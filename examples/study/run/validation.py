"""How well a trained network does on patients to choose by: as they are, and under shifts that no test has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import torch

from latentaug import CooperativeModel
from study.domains import domain_of
from study.run.metrics import evaluate
from study.run.progress import Progress
from study.run.scores import Score, column_mean, mean_of_known
from study.run.study import Study

VALIDATED = "validated"
"""Under which `done.json` keeps what `summary` says."""


def score_on_validation(
    model: CooperativeModel, study: Study, draw: int, device: torch.device, *, method: str, stage: str
) -> list[Score]:
    """Return the Dice of the network alone on the patients to choose by, with a column for each shift and severity.

    It computes in the precision of the training: bfloat16, where the preset has that, takes a third of the time.
    """
    sets = study.to_choose_by(draw)
    with Progress("validating", sum(map(len, sets.values()))) as progress:
        watched = {name: progress.over(frames) for name, frames in sets.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=study.preset.precision == "bfloat16"):
            return evaluate(
                model,
                watched,
                device,
                method=method,
                draw=draw,
                side=study.seen,
                stages=(stage,),
                distances=False,
            )


def summary(scores: Iterable[Score]) -> dict[str, Any]:
    """Return what methods are chosen by, as plain data.

    "dice" is of the patients as they are; "shifted dice", the figure to rank by, the mean over all kinds of shift and
    severities; "by shift" each of these. All are means over structures of what `column_mean` gives.
    """
    columns: dict[str, list[Score]] = {}
    for score in scores:
        columns.setdefault(score.column, []).append(score)
    means = {column: mean_of_known(column_mean(these).values()) for column, these in columns.items()}
    domain = domain_of(columns)
    clean = domain.clean
    shifted = {column: round(value, 4) for column, value in means.items() if column != clean}
    return {
        **({} if domain.case == "patient" else {"case": domain.case}),
        "patients": len({score.patient for score in columns[clean]}),
        "dice": round(means[clean], 4),
        "shifted dice": round(fmean(means[column] for column in shifted), 4),
        "by shift": shifted,
    }


def in_words(summed_up: Mapping[str, Any]) -> str:
    """Say in a line what `summary` gives."""
    cases = f"{summed_up['patients']} {summed_up.get('case', 'patient')}s"
    return (
        f"The network alone on {cases} to choose by: Dice {summed_up['dice']:.3f}, and "
        f"{summed_up['shifted dice']:.3f} under shifts that no test has."
    )
