"""What holds for every transform: sampled once, applied as often as need be, gated, reproducible, refused by name."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.augment.base import Change, Context, LatentTransform
from latentaug.augment.compose import Compose, OneOf, RandomApply
from latentaug.augment.drop import DropBlock
from latentaug.augment.image import GIN, IPA, RandConv
from latentaug.augment.intensity import StrongIntensity
from latentaug.augment.mix import ManifoldMixup
from latentaug.augment.style import MixStyle
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
    change = MixStyle(p=1)(torch.ones(2, 1, 3), generator=torch.Generator().manual_seed(0))
    order, own = (change.params[name].tolist() for name in ("order", "own"))
    assert repr(change) == f"Change(by MixStyle, order={order}, own={[round(one, 3) for one in own]})"
    assert repr(MixStyle(p=0)(torch.ones(2, 1, 3))) == "Change(by MixStyle, leaves all as it is)"


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


def test_a_code_of_integers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"MixStyle needs a floating-point code; got torch.int64\. Pass features"):
        MixStyle()(torch.ones(2, 3, 4, dtype=torch.int64))


@pytest.mark.parametrize("batched", [True, False])
def test_images_to_augment_are_checked_as_images(batched: bool) -> None:
    images = torch.ones(2, 3, 4, 5)[slice(None) if batched else 0]
    axes = r"\[B, C, \*S\]" if batched else r"\[C, \*S\]"
    for wrong, error, said in (
        (
            images.byte(),
            TypeError,
            r"needs floating-point images; got torch.uint8\. Write images\.float\(\), scaled as in",
        ),
        (images.numpy(), TypeError, r"needs a tensor as images; got a ndarray\. Use torch.as_tensor on it"),
        ([1.0], TypeError, r"needs a tensor as images; got \[1\.0\]"),
        (images[0, 0], ValueError, rf"needs images {axes}; got shape \("),
    ):
        with pytest.raises(error, match=f"^MixStyle {said}"):
            MixStyle(p=1).augment(wrong, batched=batched)  # type: ignore[arg-type]


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
