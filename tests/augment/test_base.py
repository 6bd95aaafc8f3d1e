"""What holds for every transform: sampled once, applied as often as need be, gated, reproducible, refused by name."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.base import Change, Context, LatentTransform
from latentaug.augment.compose import Compose, OneOf, RandomApply
from latentaug.augment.drop import DropBlock
from latentaug.augment.image import GIN, IPA, RandConv
from latentaug.augment.intensity import StrongIntensity
from latentaug.augment.mix import ManifoldMixup
from latentaug.augment.ranges import log_odds_of_beta
from latentaug.augment.style import MixStyle
from latentaug.layout import CHANNELS_FIRST, Layout
from tests.support.codes import KINDS, Kind, seeded

TRANSFORMS: dict[str, LatentTransform] = {
    "MixStyle": MixStyle(p=1),
    "MixStyle, half of the samples": MixStyle(p=(0.4, 0.6), per_sample=True, partner="crossdomain"),
    "DropBlock": DropBlock((0.1, 0.4), 3, shared=False),
    "ManifoldMixup": ManifoldMixup(),
    "GIN": GIN(p=0.7),
    "RandConv": RandConv(),
    "IPA": IPA(),
    "StrongIntensity": StrongIntensity(noise=0.5, blur=1, contrast=1, gamma=0.5),
    "Compose": Compose([MixStyle(p=1), DropBlock(0.2, 3), GIN()]),
    "OneOf": OneOf([MixStyle(p=1), DropBlock(0.2, 3), ManifoldMixup()]),
    "RandomApply": RandomApply(GIN(), p=0.7),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EVERY_TRANSFORM = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)


class Times(LatentTransform):
    """Multiply each sample by a number of its own."""

    def __init__(self, by: float = 2.0, *, p: Any = 1.0, per_sample: bool = False) -> None:
        super().__init__(p=p, per_sample=per_sample)
        self.by = by

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        return {"by": self.by + context.rand(len(code))}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code * params["by"].view(-1, *[1] * (code.ndim - 1)).to(code.dtype)


class Asking(LatentTransform):
    """Ask for whatever a function says."""

    def __init__(self, ask: Callable[[Tensor, Context], Any]) -> None:
        super().__init__()
        self.ask = ask

    def make_params(self, code: Tensor, context: Context) -> dict[str, Any]:
        return {"asked": self.ask(code, context)}

    def transform(self, code: Tensor, **params: Any) -> Tensor:
        return code + 1


class SwappedLabels(Times):
    """Take the labels of the next sample."""

    def loss(self, criterion: Any, logits: Tensor, labels: Tensor, **params: Any) -> Tensor:
        loss: Tensor = criterion(logits, labels.roll(1, 0))
        return loss


# Sampled once, applied as often as need be ------------------------------------------------------------------------


@EVERY_KIND
@EVERY_TRANSFORM
def test_a_change_is_the_same_each_time_and_in_place_of_any_code_like_it(
    kind: Kind, transform: LatentTransform
) -> None:
    code = kind.code(dtype=torch.float32)
    change = transform(code, layout=kind.layout, generator=seeded(3))
    first = change.apply(code)
    assert torch.equal(first, change.apply(code))
    assert torch.equal(first, change(code))
    other = kind.code(seed=5, dtype=torch.float32)
    assert change.apply(other).shape == other.shape
    assert not torch.equal(change.apply(other), first)


@EVERY_KIND
@EVERY_TRANSFORM
def test_a_seed_is_a_change_and_the_global_stream_is_left_alone(kind: Kind, transform: LatentTransform) -> None:
    code = kind.code(dtype=torch.float32)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, second = (transform(code, layout=kind.layout, generator=seeded(3)).apply(code) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    assert torch.equal(transform(code, layout=kind.layout).apply(code), first)
    assert not torch.equal(torch.get_rng_state(), before)


@EVERY_KIND
@EVERY_TRANSFORM
def test_a_layout_says_where_the_axes_are_and_nothing_else(kind: Kind, transform: LatentTransform) -> None:
    code, layout = kind.code(dtype=torch.float32), kind.layout
    shown = layout.to_channels_first(code).contiguous()
    change = transform(code, layout=layout, generator=seeded(3))
    plain = transform(shown, generator=seeded(3)).apply(shown)
    torch.testing.assert_close(layout.to_channels_first(change.apply(code)), plain)
    if layout.prefix_tokens and not change.whole_pass:
        prefix = slice(0, layout.prefix_tokens)
        assert torch.equal(change.apply(code)[:, prefix], code[:, prefix])


@EVERY_TRANSFORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_changes_neither_what_is_sampled_nor_its_own(transform: LatentTransform, dtype: torch.dtype) -> None:
    code = KINDS["2-D"].code(dtype=torch.float32)
    change = transform(code.to(dtype), generator=seeded(3))
    changed = change.apply(code.to(dtype))
    assert changed.dtype == dtype
    expected = transform(code, generator=seeded(3)).apply(code)
    torch.testing.assert_close(changed.float(), expected, rtol=0.1, atol=0.1 * float(expected.abs().max()))


@EVERY_TRANSFORM
def test_gradients_reach_the_code_and_none_what_is_sampled(transform: LatentTransform) -> None:
    code = KINDS["2-D"].code().requires_grad_()
    change = transform(code, generator=seeded(3))
    kept = code.detach().clone()
    (gradient,) = torch.autograd.grad(change.apply(code).square().sum(), code)
    assert gradient.any()
    assert gradient.isfinite().all()
    assert torch.equal(code, kept)
    # A different code, so that nothing of the first one's graph is left in the params.
    (again,) = torch.autograd.grad(change.apply(code).square().sum(), code)
    assert torch.equal(gradient, again)


@EVERY_TRANSFORM
def test_copies_and_pickles_do_the_same_and_print_the_same(transform: LatentTransform) -> None:
    code = KINDS["2-D"].code()
    expected = transform(code, generator=seeded(3)).apply(code)
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(twin(code, generator=seeded(3)).apply(code), expected)
        assert repr(twin) == repr(transform)
    assert not list(transform.parameters())
    assert not transform.state_dict()


def test_a_change_pickles_too() -> None:
    code = KINDS["2-D"].code()
    change = MixStyle(p=1)(code, generator=seeded())
    assert torch.equal(pickle.loads(pickle.dumps(change)).apply(code), change.apply(code))


def test_what_is_printed_are_the_options_that_are_no_defaults() -> None:
    assert repr(MixStyle()) == "MixStyle()"
    assert repr(MixStyle(0.3, partner="crossdomain", detach_statistics=False)) == (
        "MixStyle(p=0.3, partner='crossdomain', detach_statistics=False)"
    )
    assert repr(DropBlock((0.1, 0.2), shared=False)) == "DropBlock(p=(0.1, 0.2), shared=False)"
    assert repr(ManifoldMixup(0.4, p=0.5)) == "ManifoldMixup(alpha=0.4, p=0.5)"
    assert repr(GIN(kernel_sizes=(3, 5), per_sample=False)) == "GIN(kernel_sizes=(3, 5), per_sample=False)"
    assert repr(MixStyle(p=1)(torch.ones(2, 1, 3))) == "Change(by MixStyle, params=['order', 'own'])"
    assert repr(MixStyle(p=0)(torch.ones(2, 1, 3))) == "Change(by MixStyle, params=[], leaves all as it is)"


# Gates ------------------------------------------------------------------------------------------------------------


def times_acted(transform: LatentTransform, batch: int, times: int) -> Tensor:
    """For each call and each sample, whether it was changed."""
    code, generator = torch.ones(batch, 1, 2), seeded()
    changed = [transform(code, generator=generator).apply(code) for _ in range(times)]
    return torch.stack([(one != code).flatten(1).all(1) for one in changed])


@pytest.mark.parametrize(("p", "mean"), [(0.3, 0.3), ((0.2, 0.8), 0.5), ((0.0, 1.0), 0.5)])
def test_the_gate_of_a_batch(p: Any, mean: float) -> None:
    acted = times_acted(Times(p=p), batch=3, times=1500)
    assert (acted == acted[:, :1]).all()  # all, or none
    assert abs(float(acted[:, 0].double().mean()) - mean) < 4 * math.sqrt(mean * (1 - mean) / 1500)


@pytest.mark.parametrize("p", [0.3, 0.8])
def test_the_gate_of_each_sample(p: float) -> None:
    acted = times_acted(Times(p=p, per_sample=True), batch=4, times=1000)
    assert abs(float(acted.double().mean()) - p) < 4 * math.sqrt(p * (1 - p) / 4000)
    together = (acted[:, 0] & acted[:, 1]).double().mean()
    assert abs(float(together) - p * p) < 4 * math.sqrt(p * p * (1 - p * p) / 1000)  # each by itself


def test_a_pair_is_sampled_once_for_a_batch_of_samples() -> None:
    acted = times_acted(Times(p=(0.0, 1.0), per_sample=True), batch=200, times=60).double().mean(1)
    assert acted.std() > 0.2  # were it sampled for each sample, batches would not differ: 0.035
    assert abs(float(acted.mean()) - 0.5) < 4 * float(acted.std()) / math.sqrt(60)


def test_samples_that_the_gate_leaves_out_are_left_bit_by_bit() -> None:
    code = KINDS["2-D"].code(dtype=torch.float32) * 1e20
    change = MixStyle(p=0.5, per_sample=True)(code, generator=seeded(2))
    gate = change.gate
    assert gate is not None
    assert gate.any()
    assert not gate.all()
    changed = change.apply(code)
    for i in range(4):
        assert torch.equal(changed[i], code[i]) is not bool(gate[i])


@pytest.mark.parametrize("kind", [KINDS["tokens_with_prefix"], KINDS["channels_last"]], ids=["prefix", "last"])
def test_a_gate_of_samples_goes_by_the_batch_axis_in_any_layout(kind: Kind) -> None:
    code = kind.code()
    change = Times(p=0.5, per_sample=True)(code, layout=kind.layout, generator=seeded(2))
    assert change.gate is not None
    changed = change.apply(code)
    assert [not torch.equal(a, b) for a, b in zip(changed, code, strict=True)] == change.gate.tolist()


def test_nothing_is_sampled_where_the_gate_is_shut_or_certain() -> None:
    generator = seeded()
    Times(p=0)(torch.ones(2, 1, 3), generator=generator)
    after = seeded()
    torch.rand((), generator=after)  # the gate itself
    assert torch.equal(generator.get_state(), after.get_state())
    generator = seeded()
    Times(p=1)(torch.ones(2, 1, 3), generator=generator)
    after = seeded()
    torch.rand(2, generator=after)  # what it multiplies by, and no gate
    assert torch.equal(generator.get_state(), after.get_state())


def test_a_loss_respects_the_gate() -> None:
    logits, labels = torch.randn(4, 3, generator=seeded()), torch.tensor([0, 1, 2, 2])
    plain, swapped = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels.roll(1, 0))
    code = torch.ones(4, 1, 2)
    assert torch.equal(SwappedLabels(p=1)(code).loss(F.cross_entropy, logits, labels), swapped)
    assert torch.equal(SwappedLabels(p=0)(code).loss(F.cross_entropy, logits, labels), plain)
    change = SwappedLabels()(code)
    for acts, expected in ((True, swapped), (False, plain)):  # as with a generator on a GPU, whose gates stay there
        gated = Change(change.transform, change.params, gate=OnAnotherDevice(torch.tensor(acts)))
        assert not gated.is_identity
        assert torch.equal(gated.loss(F.cross_entropy, logits, labels), expected)
        assert torch.equal(gated.apply(code), change.apply(code) if acts else code)


class OnAnotherDevice(Tensor):
    """A tensor on the CPU that says it is not."""

    is_cpu = False

    @staticmethod
    def __new__(cls, tensor: Tensor) -> OnAnotherDevice:
        return tensor.as_subclass(cls)  # type: ignore[return-value]

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = tuple(arg.as_subclass(Tensor) if isinstance(arg, cls) else arg for arg in args)
        return function(*args, **(kwargs or {}))


def test_labels_mix_for_a_whole_batch_or_not_at_all() -> None:
    with pytest.raises(
        ValueError, match="SwappedLabels mixes labels, and so acts on a whole batch; got per_sample=True"
    ):
        SwappedLabels(per_sample=True)


# Modes, and batches of one ----------------------------------------------------------------------------------------


@EVERY_TRANSFORM
def test_eval_mode_is_the_identity_and_samples_nothing_of_its_own(transform: LatentTransform) -> None:
    transform = copy.deepcopy(transform).eval()
    code = KINDS["2-D"].code()
    change = transform(code, generator=seeded())
    assert torch.equal(change.apply(code), code)
    assert not change.whole_pass
    assert torch.equal(change.loss(F.mse_loss, code, code + 1), torch.ones((), dtype=code.dtype))


@EVERY_TRANSFORM
def test_the_caller_may_say_which_mode_it_is(transform: LatentTransform) -> None:
    code = KINDS["2-D"].code()
    acts = copy.deepcopy(transform).eval()(code, generator=seeded(3), training=True).apply(code)
    assert torch.equal(acts, transform(code, generator=seeded(3)).apply(code))
    assert torch.equal(transform(code, generator=seeded(3), training=False).apply(code), code)


@pytest.mark.parametrize("kind", [MixStyle, ManifoldMixup])
def test_a_batch_of_one_stays_and_each_instance_says_so_once(kind: type[LatentTransform]) -> None:
    code = torch.randn(1, 2, 3, generator=seeded())
    for _ in range(2):
        transform = kind(p=1)
        with pytest.warns(
            UserWarning, match=rf"{kind.__name__} combines the samples of a batch, and leaves a batch of"
        ):
            change = transform(code)
        assert change.apply(code) is code
        assert not change.whole_pass
        assert torch.equal(change.loss(F.mse_loss, code, code), torch.zeros(()))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert transform(code).apply(code) is code


@pytest.mark.parametrize(
    "transform", [DropBlock(0.3, 3), GIN(), RandConv(), IPA(), StrongIntensity(gamma=1), Times()], ids=repr
)
def test_a_batch_of_one_is_changed_where_no_partner_is_needed(transform: LatentTransform) -> None:
    code = torch.rand(1, 2, 8, generator=seeded())
    assert not torch.equal(transform(code, generator=seeded(1)).apply(code), code)


@EVERY_TRANSFORM
@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 2, 1), (3, 2, 1, 1), (2, 1, 1, 1)])
def test_empty_batches_and_single_positions(transform: LatentTransform, shape: tuple[int, ...]) -> None:
    code = torch.ones(shape)
    changed = transform(code, generator=seeded()).apply(code)
    assert changed.shape == shape
    assert changed.isfinite().all()


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
        (lambda code, context: context.labels, r"Asking needs `labels`; got None\. Pass the labels of the batch"),
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


def test_a_code_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"MixStyle needs a floating-point code; got torch.int64\. Pass features"):
        MixStyle()(torch.ones(2, 3, 4, dtype=torch.int64))


def test_a_transform_that_returns_another_shape_is_refused() -> None:
    class Cropping(Times):
        def transform(self, code: Tensor, **params: Any) -> Tensor:
            return code[..., 1:]

    with pytest.raises(ValueError, match=r"Cropping needs to return a code shaped like .* \(2, 3, 4\); .*\(2, 3, 3\)"):
        Cropping()(torch.ones(2, 3, 4)).apply(torch.ones(2, 3, 4))


def test_a_transform_without_its_methods_says_which() -> None:
    with pytest.raises(NotImplementedError, match=r"LatentTransform needs a method make_params\(code, context\)"):
        LatentTransform()(torch.ones(2, 3, 4))
    with pytest.raises(NotImplementedError, match=r"LatentTransform needs a method transform\(code, \*\*params\)"):
        LatentTransform().transform(torch.ones(2, 3, 4))


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
