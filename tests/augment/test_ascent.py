"""The ascent: its rules against arithmetic, its costs counted, and nothing but its variables touched."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.augment.ascent import Adversarial, ascend
from latentaug.augment.base import Context
from tests.support.codes import seeded


def hill(variables: dict[str, Tensor]) -> Tensor:
    """Highest at 3 in every entry."""
    return -(variables["x"] - 3).square().sum()


def adam_by_hand(x: list[float], steps: int, lr: float) -> list[float]:
    """Adam as its paper has it, uphill on `hill`, one entry at a time."""
    result = []
    for value in x:
        m = v = 0.0
        for t in range(1, steps + 1):
            gradient = -2 * (value - 3)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            value += lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        result.append(value)
    return result


@pytest.mark.parametrize("steps", [0, 1, 5, 20])
def test_adam_climbs_as_its_paper_says(steps: int) -> None:
    start = torch.tensor([0.0, 5.0, 2.9], dtype=torch.float64)
    top = ascend(hill, {"x": start}, steps=steps, lr=0.1)["x"]
    assert top.tolist() == pytest.approx(adam_by_hand(start.tolist(), steps, 0.1))
    assert start.tolist() == [0.0, 5.0, 2.9]


def test_sign_and_gradient_step_by_lr() -> None:
    start = torch.tensor([[0.0, 4.0], [3.0, 2.0], [3.0, 3.0]])
    assert ascend(hill, {"x": start}, steps=1, lr=0.5, rule="sign")["x"].tolist() == [[0.5, 3.5], [3.0, 2.5], [3, 3]]
    moved = ascend(hill, {"x": start}, steps=1, lr=0.5, rule="gradient")["x"] - start
    torch.testing.assert_close(moved[0], 0.5 * torch.tensor([3.0, -1.0]) / 10**0.5)
    assert moved[2].tolist() == [0, 0]  # at the top there is no way up
    torch.testing.assert_close(moved.norm(dim=1), torch.tensor([0.5, 0.5, 0.0]))


def test_power_iterations_find_the_direction_of_largest_growth() -> None:
    factors = torch.tensor([1.0, 5.0, 2.0])
    direction = torch.full((2, 3), 3**-0.5)
    for steps in (1, 3):
        found = ascend(lambda v: (factors * v["x"].square()).sum(), {"x": direction}, steps=steps, lr=2.0, rule="power")
        expected = factors**steps / (factors**steps).norm()
        torch.testing.assert_close(found["x"], 2 * expected.expand(2, 3))
    kept = ascend(lambda v: (v["x"] * 0).sum(), {"x": direction}, steps=1, lr=1.0, rule="power")
    assert torch.equal(kept["x"], direction)  # a flat objective leaves what was sampled


def test_a_radius_holds_entries_or_whole_samples() -> None:
    start = torch.zeros(2, 2)
    assert ascend(hill, {"x": start}, steps=9, lr=0.5, rule="sign", radius=1.2)["x"].unique().tolist() == [
        pytest.approx(1.2)
    ]
    assert float(ascend(hill, {"x": start}, steps=9, lr=0.5, radius=0.7)["x"].max()) == pytest.approx(0.7)
    far = ascend(hill, {"x": start}, steps=9, lr=0.5, rule="gradient", radius=torch.tensor([0.3, 0.6]))["x"]
    torch.testing.assert_close(far.norm(dim=1), torch.tensor([0.3, 0.6]))


def test_variables_are_put_back_after_each_step() -> None:
    seen: list[float] = []

    def objective(variables: dict[str, Tensor]) -> Tensor:
        seen.append(float(variables["x"].detach()))
        return variables["x"].sum()

    top = ascend(
        objective,
        {"x": torch.zeros(1)},
        steps=4,
        lr=0.4,
        rule="sign",
        project=lambda v: {"x": v["x"].clamp(max=1)},
    )
    assert seen == pytest.approx([0.0, 0.4, 0.8, 1.0])
    assert top["x"] == 1


def test_each_step_costs_one_call_and_a_known_gradient_saves_the_first() -> None:
    calls: list[int] = []

    def objective(variables: dict[str, Tensor]) -> Tensor:
        calls.append(1)
        return hill(variables)

    start = torch.tensor([1.0, 5.0])
    without = ascend(objective, {"x": start}, steps=3, lr=0.1)["x"]
    assert len(calls) == 3
    calls.clear()
    known = {"x": -2 * (start - 3)}
    assert torch.equal(ascend(objective, {"x": start}, steps=3, lr=0.1, first=known)["x"], without)
    assert len(calls) == 2
    ascend(objective, {"x": start}, steps=0, lr=0.1)
    assert len(calls) == 2


def test_nothing_of_the_network_is_touched_and_no_graph_is_left() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    start = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        top = ascend(lambda v: network.eval()(v["x"]).square().mean(), {"x": start}, steps=3, lr=0.1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all((parameter.grad == 7).all() for parameter in network.parameters())
    assert start.grad is None
    assert not top["x"].requires_grad
    assert top["x"].grad_fn is None


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    weight = torch.randn(3, 3, requires_grad=True)
    asked: list[int] = []
    weight.register_hook(lambda gradient: asked.append(1))
    ascend(lambda v: (v["x"] @ weight).square().sum(), {"x": torch.ones(2, 3)}, steps=2, lr=0.1)
    assert not asked


def test_gradients_that_are_no_numbers_move_nothing() -> None:
    def objective(variables: dict[str, Tensor]) -> Tensor:
        x = variables["x"]
        return (x[0] * math.nan + x[1]).sum()

    for rule in ("adam", "sign", "gradient"):
        top = ascend(objective, {"x": torch.zeros(2, 3)}, steps=2, lr=0.5, rule=rule)["x"]
        assert not top[0].any()
        assert (top[1] > 0).all()


def test_small_gradients_through_float16_are_not_lost() -> None:
    def objective(variables: dict[str, Tensor]) -> Tensor:
        return (variables["x"].half() * 1e-4).square().sum().float() * 1e-3

    start = {"x": torch.full((1, 4), 0.5)}
    assert torch.equal(ascend(objective, start, steps=1, lr=0.1, rule="sign")["x"], start["x"])
    assert (ascend(objective, start, steps=1, lr=0.1, rule="sign", half=True)["x"] > start["x"]).all()


def test_an_objective_that_does_not_see_the_variables_leaves_them() -> None:
    assert ascend(lambda v: torch.ones(()), {"x": torch.zeros(2)}, steps=3, lr=0.1)["x"].tolist() == [0, 0]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"steps must be a whole number, 0 or more; got -1"):
        ascend(hill, {"x": torch.zeros(1)}, steps=-1, lr=0.1)
    with pytest.raises(ValueError, match=r"lr must be a finite number, 0 or more; got -0.1"):
        ascend(hill, {"x": torch.zeros(1)}, steps=1, lr=-0.1)
    with pytest.raises(TypeError, match=r"radius must be a number; got 'wide'"):
        ascend(hill, {"x": torch.zeros(1)}, steps=1, lr=0.1, radius="wide")
    with pytest.raises(ValueError, match=r"rule must be one of 'adam', 'sign', 'gradient', 'power'; got 'sgd'"):
        ascend(hill, {"x": torch.zeros(1)}, steps=1, lr=0.1, rule="sgd")
    with pytest.raises(ValueError, match=r"ascend needs a scalar to climb; got shape \(2,\)"):
        ascend(lambda v: v["x"], {"x": torch.zeros(2)}, steps=1, lr=0.1)


class Shift(Adversarial):
    """Add a number to each sample, the one that raises the loss."""

    learned = ("by",)

    def start(self, code: Tensor, context: Context) -> dict[str, Any]:
        return {"by": context.rand(len(code))}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code + params["by"].view(-1, *[1] * (code.ndim - 1)).to(code.dtype)


def test_a_transform_of_one_s_own_climbs() -> None:
    code = torch.zeros(2, 3, 4)
    change = Shift(steps=4, lr=0.5, radius=None)(code, loss_at=lambda new: new.sum(), generator=seeded())
    start = Shift(steps=0, lr=0.5, radius=None)(code, generator=seeded())
    torch.testing.assert_close(change.params["by"], start.params["by"] + 4 * 0.5)
    near = Shift(steps=4, lr=0.5, radius=(0.25, 0.25))(code, loss_at=lambda new: new.sum(), generator=seeded())
    torch.testing.assert_close(near.params["by"], start.params["by"] + 0.25)


def test_what_a_transform_asks_for_follows_from_its_steps() -> None:
    assert Shift(steps=0, lr=1, radius=None).needs == ()
    assert Shift(steps=1, lr=1, radius=None).needs == ("loss_at",)


def test_a_transform_that_does_not_start_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Adversarial needs a method start\(code, context\)"):
        Adversarial(1, 0.1, None)(torch.ones(2, 3, 4), loss_at=lambda new: new.sum())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_there_or_missed_by_their_reason(mode: Any) -> None:
    def climb() -> Any:
        return ascend(lambda at: at["x"].sum(), {"x": torch.zeros(2)}, steps=1, lr=1.0)

    with mode():
        if mode is torch.no_grad:
            assert climb()["x"].gt(0).all()
            return
        with pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\) has none of\. Leave it"):
            climb()
