"""Train one method on one draw, or go on with it, and test it."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cardiac.data.batches import Batch, Timed, TrainingBatches, iterations_per_pass, middle_slices, validation_batches
from cardiac.data.readers import DataError, Frame
from cardiac.methods import METHODS
from cardiac.methods.network import Network
from cardiac.run.callbacks import SaveOften
from cardiac.run.cases import Cases
from cardiac.run.environment import environment
from cardiac.run.files import save_figure
from cardiac.run.hardness import dice_of, dice_of_masked
from cardiac.run.metrics import evaluate
from cardiac.run.moments import FOLDER, Moments
from cardiac.run.outputs import Outputs
from cardiac.run.presets import Preset
from cardiac.run.progress import Progress
from cardiac.run.scores import column_mean, mean_of_known
from cardiac.run.study import Study
from latentaug import CooperativeModel, CooperativeTrainer, PerStep, Ramp
from latentaug.plot import plot_hard_examples

ROUNDS = 5
"""A run is validated after every pass over its slices, and at least this often."""


def train_and_test(
    method: str,
    draw: int,
    study: Study,
    outputs: Outputs,
    device: torch.device,
    network: Network,
    command: str,
) -> None:
    """Train one method on one draw, or go on with it, and test it."""
    preset, seed, notes = study.preset, outputs.configuration["seed"] + draw, study.notes(draw)
    frames = study.training(draw)
    per_pass = iterations_per_pass(frames, preset.batch_size)
    iterations = preset.iterations or preset.epochs * per_pass
    print(f"\n{method}, draw {draw}: {iterations} iterations", *notes, sep="\n  ", flush=True)
    trainer = build_trainer(method, network, preset, iterations, seed, outputs.place(method, draw), device)
    loader = TrainingBatches(
        frames,
        side=preset.side,
        batch_size=preset.batch_size,
        length=max(1, min(per_pass, iterations // ROUNDS)),
        seed=seed,
        epoch=lambda: trainer.epoch,
        device=device,
    )
    validation = validation_batches(study.validation(draw), preset.side, device)
    reconstructs, refines = METHODS[method].reconstructs, METHODS[method].refines
    timed = Timed(loader)
    if reconstructs:
        trainer.callbacks.append(Moments(outputs.place(method, draw) / FOLDER, validation))
    trainer.fit(timed, validation, max_steps=iterations, monitor="refined_iou" if refines else "iou")
    if timed.share is not None:
        print(f"  data: {100 * timed.share:.1f} % of the training time", flush=True)
    if preset.weights == "best":
        try:
            trainer.load_best()
        except (OSError, ValueError) as error:
            raise DataError(f"{error}. Remove {outputs.place(method, draw)}, to start over.") from None
    model, tests = cast(CooperativeModel, trainer.model), study.tests(draw)
    seconds, started = sum(row["seconds"] for row in trainer.history), time.monotonic()
    stages, cases = network.stages if refines else network.stages[:1], Cases()
    with Progress("testing", sum(map(len, tests.values()))) as progress:
        sets = {name: progress.over(frames) for name, frames in tests.items()}
        scores = evaluate(model, sets, device, method=method, draw=draw, side=preset.side, stages=stages, watch=cases)
    cases.save(outputs.place(method, draw))
    print(f"  {iterations} iterations took {seconds:.0f} s, the tests {time.monotonic() - started:.0f} s.", flush=True)
    validated = validate(trainer, validation, reconstructs=reconstructs)
    print(f"  Validation: {', '.join(f'{name} {value:.4f}' for name, value in validated.items())}.")
    shifted = shifted_dice(model, study.shifted_validation(draw), device, preset.side, stages)
    print(f"  Validation under other shifts than the tests': Dice {mean_of_known(shifted.values()):.3f}.")
    about = {
        "iterations": iterations,
        "seconds": round(seconds, 1),
        "data share": timed.share,
        "best step": trainer.history[trainer.best.epoch - 1]["step"],
        **validated,
        "shifted validation dice": shifted,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **environment(command),
        "notes": notes,
    }
    if reconstructs:
        figure = hard_examples_figure(model, validation)
        save_figure(outputs.place(method, draw) / "hard_examples.png", figure, outputs.configuration)
    outputs.finish(method, draw, scores, about)


def validate(trainer: CooperativeTrainer, volumes: Sequence[Batch], *, reconstructs: bool) -> dict[str, float]:
    """Return the Dice of the network on validation, and how hard examples are, of a method that can make them."""
    model = cast(CooperativeModel, trainer.model)
    if not reconstructs:
        return {"validation dice": dice_of(model, volumes)}
    error = trainer.evaluate(volumes)["reconstruction"] / model.weights["reconstruction"]
    own, hard = dice_of_masked(model, volumes)
    return {"reconstruction error": error, "validation dice": own, "hard dice": hard}


def shifted_dice(
    model: CooperativeModel,
    sets: Mapping[str, Sequence[Frame]],
    device: torch.device,
    side: int,
    stages: Sequence[str],
) -> dict[str, float]:
    """Return the mean Dice of the last stage on each set."""
    scores = evaluate(model, sets, device, method="", draw=0, side=side, stages=stages)
    last = [score for score in scores if score.stage == stages[-1] and score.metric == "dice"]
    means = {name: column_mean(score for score in last if score.column == name) for name in sets}
    return {name: mean_of_known(by_structure.values()) for name, by_structure in means.items()}


def build_trainer(
    method: str, network: Network, preset: Preset, iterations: int, seed: int, folder: Path, device: torch.device
) -> CooperativeTrainer:
    """Make a network and a trainer for it, alike for every method, where it was left if it was begun."""
    chosen_method = METHODS[method]
    torch.manual_seed(seed)
    model = network.build(preset, chosen_method.options).to(device).to(memory_format=torch.channels_last)
    if chosen_method.prepare is not None:
        chosen_method.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate)
    trainer = CooperativeTrainer(
        model,
        optimizer,
        scheduler=PerStep(learning_rate_schedule(optimizer, preset, iterations)),
        precision=cast(Any, preset.precision),
        step=chosen_method.backward,
        seed=seed,
        folder=folder,
        allocator=False,  # tuned for the whole run already, and said so
    )
    trainer.callbacks.append(SaveOften(folder / "last.pt"))
    if chosen_method.ramp:
        trainer.callbacks.append(Ramp(model, chosen_method.ramp * iterations))
    if (folder / "last.pt").exists():
        try:
            trainer.resume(folder / "last.pt")
        except ValueError as error:
            raise DataError(f"{error} Or remove {folder}, to start over.") from None
        print(f"  going on from iteration {trainer.global_step}", flush=True)
    return trainer


def learning_rate_schedule(optimizer: Optimizer, preset: Preset, iterations: int) -> LambdaLR:
    """Let the learning rate rise to its value, if there is a warm-up, and fall to 0 after it, if the preset says so."""
    warm_up = preset.warm_up or 0

    def factor(done: int) -> float:
        if done < warm_up:
            return (done + 1) / (warm_up + 1)
        fallen = (done - warm_up) / max(1, iterations - warm_up)
        return 1.0 if preset.schedule == "constant" else (1 + math.cos(math.pi * fallen)) / 2

    return LambdaLR(optimizer, factor)


def hard_examples_figure(model: CooperativeModel, volumes: Sequence[Batch]) -> Figure:
    """Draw how hard examples come about on the middle slices of the first volumes."""
    images, labels = middle_slices(volumes[:4])
    steps = model.explain(images, labels, generator=torch.Generator(images.device).manual_seed(0))
    return plot_hard_examples(images, labels, **steps._asdict())
