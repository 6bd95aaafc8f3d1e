"""Test what was trained, on the tests and on validation, and keep what there is to look at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from matplotlib.figure import Figure

from latentaug import CooperativeModel, CooperativeTrainer
from latentaug.plot import plot_hard_examples
from study.data.batches import Batch, middle_slices
from study.methods import METHODS
from study.methods.network import Network
from study.run.files import save_figure
from study.run.hardness import dice_of, dice_of_masked
from study.run.metrics import evaluate
from study.run.outputs import Outputs
from study.run.progress import Progress
from study.run.scores import VALIDATION, Score, write_scores
from study.run.study import Study
from study.run.validation import VALIDATED, in_words, score_on_validation, summary


def test(
    trainer: CooperativeTrainer,
    method: str,
    draw: int,
    study: Study,
    outputs: Outputs,
    network: Network,
    validation: Sequence[Batch],
) -> tuple[list[Score], dict[str, Any]]:
    """Return the scores on every test set, and what `done.json` says of validation; keep cases and hard examples."""
    model, tests, watch = cast(CooperativeModel, trainer.model), study.tests(draw), study.watch()
    reconstructs, refines = METHODS[method].reconstructs, METHODS[method].refines
    stages, place = network.stages if refines else network.stages[:1], outputs.place(method, draw)
    started = time.monotonic()
    with Progress("testing", sum(map(len, tests.values()))) as progress:
        sets = {name: progress.over(frames) for name, frames in tests.items()}
        half = study.half_precision and study.preset.precision == "bfloat16"
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=half):
            scores = evaluate(
                model,
                sets,
                trainer.device,
                method=method,
                draw=draw,
                side=study.seen,
                stages=stages,
                watch=watch,
                further=study.calibrated,
            )
    if watch is not None:
        watch.save(place)
    print(f"  The tests took {time.monotonic() - started:.0f} s.", flush=True)
    validated = validate(trainer, validation, reconstructs=reconstructs)
    print(f"  Validation: {', '.join(f'{name} {value:.4f}' for name, value in validated.items())}.")
    chosen_by = score_on_validation(model, study, draw, trainer.device, method=method, stage=network.stages[0])
    write_scores(place, chosen_by, VALIDATION)
    summed_up = summary(chosen_by)
    print(f"  {in_words(summed_up)}", flush=True)
    if reconstructs:
        save_figure(place / "hard_examples.png", hard_examples_figure(model, validation), outputs.configuration)
    return scores, {**validated, VALIDATED: summed_up}


def validate(trainer: CooperativeTrainer, volumes: Sequence[Batch], *, reconstructs: bool) -> dict[str, float]:
    """Return the Dice of the network on validation, and how hard examples are, of a method that can make them."""
    model = cast(CooperativeModel, trainer.model)
    if not reconstructs:
        return {"validation dice": dice_of(model, volumes)}
    error = trainer.evaluate(volumes)["reconstruction"] / model.weights["reconstruction"]
    own, hard = dice_of_masked(model, volumes)
    return {"reconstruction error": error, "validation dice": own, "hard dice": hard}


def hard_examples_figure(model: CooperativeModel, volumes: Sequence[Batch]) -> Figure:
    """Draw how hard examples come about on the middle slices of the first volumes."""
    images, labels = middle_slices(volumes[:4])
    steps = model.explain(images, labels, generator=torch.Generator(images.device).manual_seed(0))
    return plot_hard_examples(images, labels, **steps._asdict())
