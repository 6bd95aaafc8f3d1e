"""Train one method on one draw, or go on with it, and test it."""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import Any, cast

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from latentaug import CooperativeModel, CooperativeTrainer, PerStep, Ramp
from study.data.batches import Timed, TrainingBatches, iterations_per_pass, validation_batches
from study.data.frame import DataError
from study.methods import METHODS
from study.methods.augmentations import AUGMENTATIONS
from study.methods.network import Network
from study.run.callbacks import SaveOften
from study.run.cost import in_equal_time, kept_cost, measure_cost
from study.run.environment import environment
from study.run.moments import FOLDER, Moments
from study.run.outputs import Outputs
from study.run.presets import Preset
from study.run.statistics import BATCHES, renew_statistics
from study.run.study import Study
from study.run.testing import test

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
    """Train one method on one draw, or go on with it, test it, and mark it as done."""
    preset, seed, notes = study.preset, outputs.configuration["seed"] + draw, study.notes(draw)
    frames, place = study.training(draw), outputs.place(method, draw)
    per_pass = iterations_per_pass(frames, preset.batch_size)
    longest = max(per_pass, study.between)
    of_plain = iterations = preset.iterations or preset.epochs * per_pass
    batches = TrainingBatches(
        frames,
        side=preset.side,
        batch_size=preset.batch_size,
        length=max(1, min(longest, iterations // ROUNDS)),
        seed=seed,
        epoch=lambda: trainer.epoch,
        device=device,
    )
    cost = kept_cost(place, lambda: measure_cost(method, network, preset, batches.batch(0), device))
    if preset.equal_time:
        preset, iterations = in_equal_time(preset, iterations, cost)
        batches.length = max(1, min(longest, iterations // ROUNDS))
    batches.augment = AUGMENTATIONS[preset.augment]
    said = f"\n{method}, draw {draw}: {iterations} iterations of {cost:.2f} plain steps each"
    print(said, *notes, sep="\n  ", flush=True)
    trainer = build_trainer(method, network, preset, iterations, seed, place, device, draw)
    loader = Timed(batches)
    validation = validation_batches(study.validation(draw), preset.side, device)
    if METHODS[method].reconstructs:
        trainer.callbacks.append(Moments(place / FOLDER, validation))
    monitor = "refined_iou" if METHODS[method].refines else "iou"
    trainer.fit(loader, validation, max_steps=iterations, monitor=monitor)
    seconds = sum(row["seconds"] for row in trainer.history)
    print(f"  {iterations} iterations took {seconds:.0f} s.", flush=True)
    if loader.share is not None:
        print(f"  data: {100 * loader.share:.1f} % of the training time", flush=True)
    if preset.weights == "best":
        try:
            trainer.load_best()
        except (OSError, ValueError) as error:
            raise DataError(f"{error}. Remove {place}, to start over.") from None
    if preset.statistics == "renewed":
        batches.augment = None  # tests are of images as they are
        seen = (batches.batch(iterations + number)[0] for number in range(BATCHES))
        renew_statistics(cast(CooperativeModel, trainer.model).model, seen, device, preset.precision)
    scores, figures = test(trainer, method, draw, study, outputs, network, validation)
    assert trainer.best is not None
    about = {
        "iterations": iterations,
        **({"iterations of plain": of_plain} if preset.equal_time else {}),
        "seconds": round(seconds, 1),
        "cost": cost,
        "data share": loader.share,
        "best step": trainer.history[trainer.best.epoch - 1]["step"],
        **figures,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **environment(command),
        "notes": notes,
    }
    outputs.finish(method, draw, scores, about)


def build_trainer(
    method: str,
    network: Network,
    preset: Preset,
    iterations: int,
    seed: int,
    folder: Path,
    device: torch.device,
    draw: int = 0,
) -> CooperativeTrainer:
    """Make a network and a trainer for it, alike for every method, where it was left if it was begun."""
    chosen_method = METHODS[method]
    torch.manual_seed(seed)
    model = network.build(preset, chosen_method.arguments).to(device).to(memory_format=torch.channels_last)
    network.load_start(model.model, draw)
    if chosen_method.prepare is not None:
        chosen_method.prepare(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=preset.learning_rate, fused=True)
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
    if chosen_method.ramp or chosen_method.start:
        rising, start = max(1.0, chosen_method.ramp * iterations), chosen_method.start * iterations
        trainer.callbacks.append(Ramp(model, rising, start=start))
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
