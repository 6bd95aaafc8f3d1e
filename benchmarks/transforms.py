"""Time what each transform adds to a plain training step, where its paper puts it, on U-Nets of realistic size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import latentaug
from benchmarks.networks import LITTLE, UNETS, Row
from benchmarks.replay import objective, prepared, timed
from benchmarks.report import Options, Report, Table
from latentaug import (
    Adversarial,
    Compose,
    LatentTap,
    LatentTransform,
    Masker,
    OneOf,
    RandomApply,
    augmented,
    suggest_layers,
    tune_allocator,
)

BASES = {LatentTransform, Masker, Adversarial, Compose, OneOf, RandomApply}
COLUMNS = ("where", "how", "step", "replays", "expected")
FORMATS = {"step": "{:.3f}", "expected": "{:.2f}"}
STEPS = (1, 5)
"""Steps of the ascents that are timed."""


def run(options: Options) -> Report:
    """Measure every transform on every size, in this process."""
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        tune_allocator(2**30)
    tables = [measure(row, options) for row in (LITTLE if options.quick else UNETS)]
    return Report(tables, drawn="step", notes=NOTES)


NOTES = (
    "A training step (forward, loss and backward, in float32) with the transform, over a plain one: of the CPU's time, "
    "or on the clock on a GPU. Every repetition runs a plain step and then one with each transform, and the median of "
    "the quotients counts. *Where*: the layers that `suggest_layers` names. *How*: on the *images*; in *one pass* "
    "(`augmented`); or by a *tap*: a step that also trains on a replay of the change. *Replays*: how many of them the "
    "step makes, forward and backward, that of the training included. *Expected*: a plain step, a saliency if one is "
    "asked for, and these replays, by the time that each takes alone.",
)


def transforms() -> Iterator[LatentTransform]:
    """Make every public transform, acting whenever it can; ascents of several lengths."""
    for name in latentaug.__all__:
        kind: Any = getattr(latentaug, name)
        if not inspect.isclass(kind) or not issubclass(kind, LatentTransform) or kind in BASES:
            continue
        always: dict[str, Any] = {"p": 1.0} if kind.gated and "p" in inspect.signature(kind).parameters else {}
        climbs = "loss_at" in kind(**always).needs
        choices: list[dict[str, Any]] = [{"steps": steps} for steps in STEPS] if climbs else [{}]
        for options in choices:
            made: LatentTransform = kind(**always, **options)
            yield made


def measure(row: Row, options: Options) -> Table:
    """Measure all transforms on one network."""
    model, images = prepared(row, options)
    device = images.device
    steps: dict[str, tuple[Any, ...]] = {}
    for transform in transforms():
        layers = suggest_layers(model, images, transform).layers
        steps[repr(transform)] = _way(model, images, transform, [str(layer) for layer in layers])
    for _, _, step, _ in steps.values():
        step()  # what comes once is over
    parts = _parts(model, images, steps)
    plain: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in [*steps, *parts]}
    for _ in range(options.repeats):
        for name, step in [*((name, way[2]) for name, way in steps.items()), *parts.items()]:
            plain.append(timed(lambda: objective(model(images)).backward(), device))
            taken[name].append(step() if name in parts else timed(step, device) / plain[-1])
    middle = {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
    least = min(plain)
    rows = {}
    for name, (where, how, _, replays) in steps.items():
        expected = None
        if how == "tap":
            saliency = middle[f"saliency {where}"] if replays.saliency else 0.0
            expected = 1 + (saliency + replays.count * middle[f"replay {where}"]) / least
        rows[name] = (f"`{where}`" if where else "", how, middle[name], replays.count or None, expected)
    shape = "x".join(map(str, row.shape))
    return Table(f"{row.name}, {shape}", COLUMNS, rows, FORMATS | {"replays": "{:.0f}"})


class Replays:
    """How many replays a step makes, and whether it asks for a saliency."""

    def __init__(self, transform: LatentTransform | None = None) -> None:
        needs = () if transform is None else transform.needs
        self.saliency = "saliency" in needs
        climbed = {"loss_at", "divergence_at"} & {*needs}
        self.count = 0
        if transform is not None:
            self.count = 1 + (getattr(transform, "steps", 1) - self.saliency if climbed else 0)


def _way(model: nn.Module, images: Tensor, transform: LatentTransform, layers: list[str]) -> tuple[Any, ...]:
    """Return where, how, a step, and its replays."""
    if not layers:
        return "", "images", lambda: objective(model(transform.augment(images))).backward(), Replays()
    if not transform.needs:
        if transform.whole_pass:
            layers = layers[-1:]

        def one_pass() -> None:
            with augmented(model, dict.fromkeys(layers, transform)) as changed:
                logits = model(images)
                changed.loss(lambda logits, _: objective(logits), logits, torch.zeros(len(images))).backward()

        return ", ".join(layers), "one pass", one_pass, Replays()

    def tap() -> None:
        with LatentTap(model, layers) as one:
            loss = objective(model(images))
            (loss + objective(one.replay(transform, objective=objective))).backward()

    return ", ".join(layers), "tap", tap, Replays(transform)


def _parts(model: nn.Module, images: Tensor, steps: dict[str, tuple[Any, ...]]) -> dict[str, Callable[[], float]]:
    """Return what times a saliency and a replay, forward and backward, of each set of layers."""
    parts: dict[str, Callable[[], float]] = {}
    for where in {way[0] for way in steps.values() if way[1] == "tap"}:
        layers = where.split(", ")
        for name in ("saliency", "replay"):
            parts[f"{name} {where}"] = partial(_alone, model, images, layers, saliency=name == "saliency")
    return parts


def _alone(model: nn.Module, images: Tensor, layers: list[str], *, saliency: bool) -> float:
    """Return the time of a saliency, or of a replay with its backward pass, within a pass that is not counted."""
    with LatentTap(model, layers) as tap:
        loss = objective(model(images))
        if saliency:
            return timed(lambda: latentaug.latent_saliency(loss, tap.codes), images.device)
        factors = [torch.ones((), device=images.device, requires_grad=True) for _ in layers]
        new: list[Any] = [factor.__mul__ for factor in factors]
        return timed(lambda: torch.autograd.grad(objective(tap.replay(new, detach=True)), factors), images.device)
