"""What a step costs over the network alone, and what follows from it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cardiac.run.presets import Preset
from latentaug import CooperativeModel
from study.data.frame import DataError
from study.methods import METHODS
from study.methods.network import Network
from study.run import cost
from study.run.cost import in_equal_time, kept_cost, measure_cost

TINY = Preset(image_size=32, depth=2, width=2, batch_size=4)
CPU = torch.device("cpu")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 1, 32, 32, generator=generator), torch.randint(4, (4, 32, 32), generator=generator)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still, unless a test moves it."""
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    return now


def slow_down(monkeypatch: pytest.MonkeyPatch, clock: list[float], seconds: dict[str, list[float]]) -> None:
    """Let steps of the network alone, and those of a method, take what `seconds` says, in turn."""

    def stepping(name: str) -> object:
        left = iter(seconds[name])

        def step(*_: object) -> None:
            clock[0] += next(left)

        return step

    monkeypatch.setattr(cost, "_plain_step", lambda *_: stepping("plain"))
    monkeypatch.setattr(cost, "_own_step", lambda *_: stepping("own"))


def test_the_cost_is_the_median_over_rounds_of_a_rounds_own_steps_over_plain_ones(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], batch: tuple[Tensor, Tensor]
) -> None:
    own = [*[9.0, 9.0], *[5.0, 1.0, 1.0, 1.0], *[5.0, 1.0, 1.0, 1.0], *[50.0] * 4]  # warm-up, rounds, another's work
    slow_down(monkeypatch, clock, {"plain": [1.0] * 14, "own": own})
    assert measure_cost("plain", Network(), TINY, batch, CPU) == 2.0


def test_steps_are_taken_in_turn(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], batch: tuple[Tensor, Tensor]
) -> None:
    taken: list[str] = []

    def noting(name: str) -> object:
        def step(*_: object) -> None:
            taken.append(name)
            clock[0] += 1

        return step

    for name in ("_plain_step", "_own_step"):
        monkeypatch.setattr(cost, name, lambda *_, name=name: noting(name))
    assert measure_cost("plain", Network(), TINY, batch, CPU) == 1.0
    assert taken == ["_plain_step", "_own_step"] * (cost.WARM_UP + cost.ROUNDS * cost.STEPS)


@pytest.mark.parametrize(("method", "augment"), [("plain", "gin"), ("mixup", "none"), ("cooperative", "none")])
def test_measuring_leaves_random_streams_and_the_batch_as_they_were(
    batch: tuple[Tensor, Tensor], method: str, augment: str
) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - the global one
    images, labels = (tensor.clone() for tensor in batch)
    found = measure_cost(method, Network(), Preset(**{**vars(TINY), "augment": augment}), batch, CPU)
    assert found > 0
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert torch.equal(batch[0], images)
    assert torch.equal(batch[1], labels)


def test_the_method_is_measured_with_the_augmentation_and_the_network_alone_without(
    monkeypatch: pytest.MonkeyPatch, batch: tuple[Tensor, Tensor]
) -> None:
    seen: list[Tensor] = []

    def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(images)
        return 1 - images

    monkeypatch.setattr(cost, "AUGMENTATIONS", {"none": inverted})
    measure_cost("plain", Network(), TINY, batch, CPU)
    assert len(seen) == cost.WARM_UP + cost.ROUNDS * cost.STEPS
    assert all(torch.equal(images, batch[0]) for images in seen)


def test_a_method_that_does_more_costs_more(batch: tuple[Tensor, Tensor]) -> None:
    """By the operations that are counted, not by the clock."""
    calls = {}
    for method in ("plain", "cooperative"):
        model = Network().build(TINY, METHODS[method].options)
        step = cost._own_step(method, model, TINY, CPU)
        with torch.profiler.profile() as profile:
            step(*batch)
        calls[method] = sum(event.count for event in profile.key_averages() if event.key == "aten::convolution")
    assert calls["cooperative"] > 3 * calls["plain"]


def test_the_first_cost_is_kept(tmp_path: Path) -> None:
    assert kept_cost(tmp_path / "draw-0", lambda: 1.80049) == 1.8
    assert kept_cost(tmp_path / "draw-0", lambda: 99.0) == 1.8


@pytest.mark.parametrize("text", ["", "{}", '{"cost": 0}', '{"cost": "much"}', '{"cost": null}'])
def test_a_damaged_cost_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / cost.FILE).write_text(text)
    with pytest.raises(DataError, match=r"cost\.json"):
        kept_cost(tmp_path, lambda: 1.0)


@pytest.mark.parametrize(
    ("measured", "iterations", "warm_up"), [(1.0, 3000, 50), (0.97, 3000, 50), (1.8, 1667, 28), (5.4, 556, 9)]
)
def test_in_equal_time_iterations_and_warm_up_shrink_and_never_grow(
    measured: float, iterations: int, warm_up: int
) -> None:
    preset, found = in_equal_time(Preset(warm_up=50), 3000, measured)
    assert (found, preset.warm_up) == (iterations, warm_up)


def test_a_preset_without_warm_up_stays_without() -> None:
    preset, iterations = in_equal_time(Preset(), 10, 100.0)
    assert preset == Preset()
    assert iterations == 1


@pytest.mark.parametrize(("method", "heads"), [("plain", False), ("standard", True), ("cooperative", True)])
def test_a_method_is_measured_with_the_heads_that_it_trains(
    monkeypatch: pytest.MonkeyPatch, clock: list[float], batch: tuple[Tensor, Tensor], method: str, heads: bool
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    built: list[CooperativeModel] = []

    def own(_: str, model: CooperativeModel, *__: object) -> object:
        built.append(model)
        return lambda *_: clock.__setitem__(0, clock[0] + 1)

    monkeypatch.setattr(cost, "_own_step", own)
    monkeypatch.setattr(cost, "_plain_step", lambda *_: lambda *_: clock.__setitem__(0, clock[0] + 1))
    measure_cost(method, Network("smp:Unet:resnet18"), TINY, batch, CPU)
    (model,) = built
    assert [model.reconstruction is not None, model.shape_prior is not None] == [heads, heads]
