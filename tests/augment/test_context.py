"""What a transform may ask for while it samples, and its random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor, nn

from latentaug.augment.base import Context, LatentTransform
from latentaug.augment.compose import Compose, OneOf
from latentaug.augment.drop import DropBlock
from latentaug.augment.image import GIN
from latentaug.augment.intensity import StrongIntensity
from latentaug.augment.masks import RandomChannelMask
from latentaug.augment.noise import AdditiveNoise
from latentaug.augment.ranges import log_odds_of_beta
from latentaug.augment.style import DSU
from latentaug.layout import CHANNELS_FIRST, Layout
from tests.support.codes import KINDS, Kind, seeded

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


class Asking(LatentTransform):
    """Ask for whatever a function says."""

    def __init__(self, ask: Callable[[Tensor, Context], Any]) -> None:
        super().__init__()
        self.ask = ask

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        return {"asked": self.ask(code, context)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code + 1


# What a transform may ask for -------------------------------------------------------------------------------------


@EVERY_KIND
def test_a_saliency_is_computed_once_and_shown_channels_first(kind: Kind) -> None:
    code, saliency, calls = kind.code(), kind.code(seed=1), []

    def compute() -> Tensor:
        calls.append(1)
        return saliency.requires_grad_()

    seen = Asking(lambda code, context: (context.saliency(), context.saliency()))(
        code, compute, layout=kind.layout
    ).params["asked"]
    assert len(calls) == 1
    assert seen[0] is seen[1]
    assert torch.equal(seen[0], kind.layout.to_channels_first(saliency))
    assert not seen[0].requires_grad
    Asking(lambda code, context: None)(code, compute, layout=kind.layout)
    assert len(calls) == 1


def test_transforms_of_transforms_share_one_saliency() -> None:
    code, calls = torch.ones(2, 3, 4), []
    ask = Asking(lambda code, context: context.saliency())
    Compose([ask, Asking(ask.ask), OneOf([ask])])(code, lambda: calls.append(1) or torch.ones(2, 3, 4))
    assert len(calls) == 1


@EVERY_KIND
@pytest.mark.parametrize("name", ["loss_at", "divergence_at"])
def test_losses_at_a_code_speak_the_caller_s_layout(kind: Kind, name: str) -> None:
    code, weight = kind.code(), kind.code(seed=1)
    seen = []

    def function(other: Tensor) -> Tensor:
        seen.append(other)
        return (other * weight).sum()

    def ask(shown: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        leaf = shown.clone().requires_grad_()
        loss = getattr(context, name)(leaf)
        return loss, torch.autograd.grad(loss, leaf)[0]

    loss, gradient = Asking(ask)(code, layout=kind.layout, **{name: function}).params["asked"]
    assert torch.equal(seen[0], code)
    torch.testing.assert_close(loss, (code * weight).sum())
    assert torch.equal(gradient, kind.layout.to_channels_first(weight))


def test_labels_are_those_of_the_caller() -> None:
    labels = torch.tensor([1, 2])
    assert Asking(lambda code, context: context.labels)(torch.ones(2, 1, 3), labels=labels).params["asked"] is labels


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda code, context: context.saliency(),
            r"Asking needs `saliency` shaped like the code \(2, 5, 3\); got None",
        ),
        (
            lambda code, context: context.loss_at(code),
            r"Asking needs `loss_at`, a callable that returns the loss for a",
        ),
        (
            lambda code, context: context.divergence_at(code),
            r"Asking needs `divergence_at`, a callable that returns the",
        ),
        (lambda code, context: context.labels, r"Asking needs `labels`; got None\. Pass labels= where you call"),
    ],
)
def test_what_was_not_given_is_named(ask: Callable[[Tensor, Context], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Asking(ask)(torch.ones(2, 5, 3), layout=Layout(-1))
    with pytest.raises(ValueError, match=message.replace("Asking", "Compose")):
        Compose([Asking(ask)])(torch.ones(2, 5, 3), layout=Layout(-1))


@pytest.mark.parametrize("saliency", [torch.ones(2, 3, 5), "none", np.ones((2, 5, 3))])
def test_a_misshapen_saliency_is_refused(saliency: Any) -> None:
    came = r"\(2, 3, 5\)" if isinstance(saliency, Tensor) else type(saliency).__name__
    with pytest.raises(ValueError, match=rf"shaped like the code \(2, 5, 3\); got {came}"):
        Asking(lambda code, context: context.saliency())(torch.ones(2, 5, 3), saliency, layout=Layout(-1))


# Random numbers ---------------------------------------------------------------------------------------------------


def context_of(generator: torch.Generator | None = None) -> Context:
    code = torch.ones(2, 3, 4)
    return Context("Test", code, code, CHANNELS_FIRST, generator, {})


@pytest.mark.parametrize(
    "sample",
    [
        lambda context: context.rand(5),
        lambda context: context.uniform((2.0, 3.0), 5),
        lambda context: context.randn(5),
        lambda context: context.permutation(50),
        lambda context: context.beta(0.5, 2.0, 5),
        lambda context: torch.tensor(context.choice([1.0] * 1000)),
    ],
)
def test_random_numbers_come_from_the_generator_or_the_global_stream(sample: Callable[[Context], Tensor]) -> None:
    before = torch.get_rng_state()
    first = sample(context_of(seeded()))
    assert torch.equal(first, sample(context_of(seeded())))
    assert not torch.equal(first, sample(context_of(seeded(1))))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    assert torch.equal(sample(context_of()), first)


def test_random_numbers_have_the_distributions_they_are_named_after() -> None:
    context = context_of(seeded())
    assert stats.kstest(context.rand(4000), "uniform").pvalue > 0.01
    assert stats.kstest(context.uniform((2.0, 5.0), 4000), stats.uniform(2, 3).cdf).pvalue > 0.01
    assert stats.kstest(context.randn(4000), "norm").pvalue > 0.01
    assert context.uniform(0.25, 3).tolist() == [0.25] * 3
    chosen = torch.tensor([context.choice([1, 0, 3]) for _ in range(2000)])
    assert not (chosen == 1).any()
    assert abs(float((chosen == 2).double().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 2000)
    first = torch.stack([context.permutation(4) for _ in range(2000)])[:, 0]
    assert all(abs(float((first == i).double().mean()) - 0.25) < 4 * math.sqrt(0.1875 / 2000) for i in range(4))


@pytest.mark.parametrize(
    ("a", "b"), [(0.1, 0.1), (0.1, 0.2), (0.1, 30.0), (1.0, 1.0), (1.0, 3.0), (2.0, 2.0), (50, 50)]
)
def test_beta_has_its_distribution(a: float, b: float) -> None:
    """By the odds, in float64: of Beta(0.1, 0.1) one in ten is closer to 1 than float32 can tell."""

    def cumulative(odds: np.ndarray, a: float, b: float) -> np.ndarray:
        below, above = stats.beta(a, b).cdf(special.expit(odds)), stats.beta(b, a).sf(special.expit(-odds))
        return np.where(odds < 0, below, above)

    odds = log_odds_of_beta(a, b, (20000,), seeded())
    assert odds.isfinite().all()
    assert stats.kstest(odds.numpy(), lambda odds: cumulative(odds, a, b)).pvalue > 0.01
    assert stats.kstest(odds.numpy(), lambda odds: cumulative(odds, 1.2 * a, b)).pvalue < 0.01
    assert torch.equal(context_of(seeded()).beta(a, b, 20000), odds.sigmoid().float())


@pytest.mark.parametrize("alpha", [1e-5, 1e-3, 0.01, 1e4])
def test_beta_of_any_parameters_is_a_number_in_its_range(alpha: float) -> None:
    sampled = context_of(seeded()).beta(alpha, alpha, 4000)
    assert ((sampled >= 0) & (sampled <= 1)).all()
    assert abs(float(sampled.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(4000)
    if alpha <= 1e-3:  # nought or one, and seldom anything between
        assert float(((sampled < 1e-3) | (sampled > 1 - 1e-3)).double().mean()) > 0.98


def test_beta_of_no_shape_is_one_number() -> None:
    assert context_of(seeded()).beta(2.0, 2.0).shape == ()


class Beside(nn.Module):
    """Holds a transform, and calls it in its pass."""

    def __init__(self, transform: LatentTransform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = self.transform(images).apply(images)
        return changed


@pytest.mark.parametrize(
    "transform",
    [DSU(p=1.0), DropBlock(0.3, 3), RandomChannelMask(), AdditiveNoise(), StrongIntensity(), GIN()],
    ids=lambda transform: type(transform).__name__,
)
def test_a_compiled_function_takes_batches_of_several_sizes(transform: LatentTransform) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(Beside(transform), backend="eager")
    for size in (4, 3, 2):
        assert compiled(torch.rand(size, 1, 16, 16)).shape == (size, 1, 16, 16)
