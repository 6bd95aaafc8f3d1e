"""What holds for every public transform, found by inspection: a new one is held to all of it by being public."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import latentaug
from latentaug import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    DSU,
    Adversarial,
    Change,
    Compose,
    Cutout,
    DropBlock,
    LatentTransform,
    Layout,
    Masker,
    OneOf,
    RandomApply,
    Schedule,
    TargetDrop,
)
from tests.support.codes import KINDS, Kind, seeded

# Codes of one sample, and those without a saliency: that it is said when nothing changes is tested elsewhere.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*leaves a batch of one as it is:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*all zero or not finite:UserWarning"),
]

PUBLIC = [getattr(latentaug, name) for name in latentaug.__all__]
TRANSFORMS = [one for one in PUBLIC if inspect.isclass(one) and issubclass(one, LatentTransform)]
BASES = {Adversarial, LatentTransform, Masker}
COMPOSED: dict[type[LatentTransform], Callable[..., LatentTransform]] = {
    Compose: lambda: Compose([DSU(p=1), DropBlock(0.3, 3), Cutout()]),
    OneOf: lambda: OneOf([DSU(p=1), TargetDrop()]),
    RandomApply: lambda p=1.0: RandomApply(DSU(p=1), p),
}
SINGLE = [cls for cls in TRANSFORMS if cls not in BASES | COMPOSED.keys()]
Class = type[LatentTransform]
SEED = 3

EVERY_KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
EVERY_TRANSFORM = pytest.mark.parametrize("cls", [*SINGLE, *COMPOSED], ids=lambda cls: cls.__name__)
EVERY_SINGLE = pytest.mark.parametrize("cls", SINGLE, ids=lambda cls: cls.__name__)


def takes_p(cls: Class) -> bool:
    return cls in {RandomApply, *SINGLE} and "p" in inspect.signature(cls).parameters


def acting(cls: Class) -> LatentTransform:
    """Make an instance as it is by default, but that it acts for certain."""
    if cls in COMPOSED:
        return COMPOSED[cls]()
    return cls(p=1) if cls.gated and takes_p(cls) else cls()


def asked(code: Tensor) -> dict[str, Any]:
    """Return all that a transform may ask for, of a model that is as simple as can be."""
    weight = torch.randn(code.shape, generator=seeded(7)).to(code.device)

    def loss_at(other: Tensor) -> Tensor:
        return (other.float() * weight).square().mean()

    def divergence_at(other: Tensor) -> Tensor:
        return ((other.float() - code.float()) * weight).square().mean()

    saliency = (2 * code.float() * weight.square() / max(code.numel(), 1)).to(code.dtype)
    labels = torch.zeros(len(code), dtype=torch.long, device=code.device)
    return {"saliency": saliency, "loss_at": loss_at, "divergence_at": divergence_at, "labels": labels}


def drawn(
    transform: LatentTransform, code: Tensor, layout: Layout = CHANNELS_FIRST, seed: int = SEED, **options: Any
) -> Change:
    return transform(code, layout=layout, generator=seeded(seed), **asked(code) | options)


def changes_something(transform: LatentTransform, code: Tensor, layout: Layout, **options: Any) -> bool:
    """Whether it does so for any of a few seeds: by chance, each may leave a code alone once."""
    changes = (drawn(transform, code, layout, seed, **options) for seed in range(12))
    return any(not torch.equal(change.apply(code), code) for change in changes)


def bits(code: Tensor) -> Tensor:
    """Show a code bit by bit, so that -0 is not 0 and NaN is itself."""
    return code.detach().contiguous().view(torch.int16 if code.element_size() == 2 else torch.int32)


def test_all_transforms_are_found() -> None:
    names = {cls.__name__ for cls in SINGLE}
    assert names >= {"MixStyle", "GIN", "ManifoldMixup", "DropBlock", "TargetedChannelMask", "RSC"}
    assert {*BASES, *COMPOSED} <= {*TRANSFORMS}
    assert not names & {"LatentTransform", "Masker", "Compose", "OneOf", "RandomApply"}


# What is taken ----------------------------------------------------------------------------------------------------

NUMBERS = [
    (cls, name)
    for cls in [*SINGLE, RandomApply]
    for name, parameter in inspect.signature(cls).parameters.items()
    if isinstance(parameter.default, int | float | tuple) and not isinstance(parameter.default, bool)
]


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=[f"{cls.__name__}-{name}" for cls, name in NUMBERS])
@pytest.mark.parametrize("value", [math.inf, math.nan, None, "a", True], ids=str)
def test_what_is_no_finite_number_is_refused_by_name(cls: Callable[..., Any], name: str, value: object) -> None:
    first = [DSU()] if cls is RandomApply else []
    with pytest.raises((TypeError, ValueError), match=rf"^{name} must be .*; got {value!r}"):
        cls(*first, **{name: value})


# What comes out ---------------------------------------------------------------------------------------------------


@EVERY_TRANSFORM
@EVERY_KIND
@EVERY_DTYPE
def test_a_code_keeps_its_shape_its_dtype_its_prefix_and_itself(cls: Class, kind: Kind, dtype: torch.dtype) -> None:
    code, layout = kind.code(dtype=torch.float32).to(dtype), kind.layout
    kept, given = code.clone(), asked(code)
    saliency = given["saliency"].clone()
    change = acting(cls)(code, layout=layout, generator=seeded(SEED), **given)
    changed = change.apply(code)
    assert changed.shape == code.shape
    assert changed.dtype == dtype
    assert changed.isfinite().all()
    assert torch.equal(bits(code), bits(kept))
    assert torch.equal(bits(given["saliency"]), bits(saliency))
    if not change.whole_pass:
        prefix = slice(0, layout.prefix_tokens)
        assert torch.equal(bits(changed[:, prefix]), bits(code[:, prefix]))
    assert torch.equal(bits(change.apply(code)), bits(changed))
    assert changes_something(acting(cls), code, layout)


@EVERY_TRANSFORM
@pytest.mark.parametrize(
    ("shape", "memory_format"),
    [
        ((4, 3, 8, 6), torch.contiguous_format),
        ((4, 3, 8, 6), torch.channels_last),
        ((2, 3, 4, 6, 5), torch.channels_last_3d),
        ((1, 3, 8, 6), torch.channels_last),
        ((4, 1, 8, 6), torch.channels_last),
        ((4, 3, 1, 1), torch.channels_last),
    ],
    ids=str,
)
def test_a_code_keeps_its_memory_format(cls: Class, shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    code = torch.randn(shape, generator=seeded()).contiguous(memory_format=memory_format)
    change = drawn(acting(cls), code)
    changed = change.apply(code)
    assert changed.is_contiguous(memory_format=memory_format)
    assert torch.equal(bits(changed), bits(change.made(code)))
    with_channels_last = code.movedim(1, -1).contiguous()
    last = drawn(acting(cls), with_channels_last, CHANNELS_LAST)
    assert last.apply(with_channels_last).is_contiguous()


@EVERY_TRANSFORM
@EVERY_KIND
def test_a_layout_says_where_the_axes_are_and_nothing_else(cls: Class, kind: Kind) -> None:
    code, layout = kind.code(dtype=torch.float32), kind.layout
    given, transform = asked(code), acting(cls)
    shown = layout.to_channels_first(code).contiguous()

    def back(other: Tensor) -> Tensor:
        return layout.put_back(other, code)

    plain = transform(
        shown,
        layout.to_channels_first(given["saliency"]),
        generator=seeded(SEED),
        labels=given["labels"],
        loss_at=lambda other: given["loss_at"](back(other)),
        divergence_at=lambda other: given["divergence_at"](back(other)),
    )
    change = transform(code, layout=layout, generator=seeded(SEED), **given)
    torch.testing.assert_close(layout.to_channels_first(change.apply(code)), plain.apply(shown), rtol=1e-4, atol=1e-4)


@EVERY_TRANSFORM
@EVERY_DTYPE
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 2, 4, 4), (2, 3, 1), (2, 1, 1, 1), (1, 1, 1), (2, 1, 5)], ids=str)
@pytest.mark.parametrize("value", [0.0, 5.0, None], ids=["zeros", "constant", "any"])
def test_degenerate_codes_stay_finite_with_their_gradients(
    cls: Class, dtype: torch.dtype, shape: tuple[int, ...], value: float | None
) -> None:
    code = torch.randn(shape, generator=seeded()) if value is None else torch.full(shape, value)
    code = code.to(dtype).requires_grad_()
    changed = drawn(acting(cls), code).apply(code)
    assert changed.shape == shape
    assert changed.isfinite().all()
    (gradient,) = torch.autograd.grad(changed.float().square().sum(), code)
    assert gradient.isfinite().all()


@EVERY_TRANSFORM
@settings(max_examples=15)
@given(
    shape=st.lists(st.integers(1, 6), min_size=3, max_size=5).map(tuple),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 2**32),
)
def test_any_code_of_any_scale_stays_finite(cls: Class, shape: tuple[int, ...], scale: float, seed: int) -> None:
    code = scale * torch.randn(shape, generator=seeded(seed))
    kept = code.clone()
    changed = drawn(acting(cls), code, seed=seed).apply(code)
    assert changed.shape == shape
    assert changed.isfinite().all()
    assert torch.equal(bits(code), bits(kept))


@EVERY_TRANSFORM
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (0, 1, 1)], ids=str)
def test_an_empty_batch_stays_empty(cls: Class, shape: tuple[int, ...]) -> None:
    code = torch.ones(shape)
    assert drawn(acting(cls), code).apply(code).shape == shape


@EVERY_SINGLE
@EVERY_KIND
def test_a_sample_does_not_ask_its_batch_mates_unless_it_combines_them(cls: Class, kind: Kind) -> None:
    transform = acting(cls)
    code, others = kind.code(dtype=torch.float32), kind.code(seed=5, dtype=torch.float32)
    others[0] = code[0]
    change = drawn(transform, code, kind.layout)
    alone = torch.equal(change.apply(others)[0], change.apply(code)[0])
    assert alone or transform.needs_partner


# When nothing is to happen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*filter(takes_p, [*SINGLE, *COMPOSED])], ids=lambda cls: cls.__name__)
@EVERY_KIND
@EVERY_DTYPE
def test_a_p_of_nought_is_the_identity_bit_by_bit(cls: Class, kind: Kind, dtype: torch.dtype) -> None:
    code = kind.code(dtype=torch.float32).to(dtype)
    transform = COMPOSED[cls](p=0.0) if cls in COMPOSED else cls(p=0)
    change = drawn(transform, code, kind.layout)
    assert torch.equal(bits(change.apply(code)), bits(code))
    assert not change.whole_pass


@EVERY_TRANSFORM
@EVERY_KIND
@EVERY_DTYPE
def test_eval_mode_is_the_identity_unless_a_masker_says_otherwise(cls: Class, kind: Kind, dtype: torch.dtype) -> None:
    code, transform = kind.code(dtype=torch.float32).to(dtype), acting(cls).eval()
    if cls.acts_in_eval and cls not in COMPOSED:
        assert changes_something(transform, code, kind.layout)
    else:
        assert torch.equal(bits(drawn(transform, code, kind.layout).apply(code)), bits(code))
    assert changes_something(transform, code, kind.layout, training=True)


@EVERY_SINGLE
def test_what_does_nothing_asks_for_nothing(cls: Class) -> None:
    code, generator, calls = KINDS["2-D"].code(dtype=torch.float32), seeded(), []
    refused = {name: lambda *_: calls.append(1) for name in ("saliency", "loss_at", "divergence_at")}
    if not cls.acts_in_eval:
        cls().eval()(code, generator=generator, **refused)
    assert not calls
    assert torch.equal(generator.get_state(), seeded().get_state())


# Where the numbers come from --------------------------------------------------------------------------------------


@EVERY_TRANSFORM
@EVERY_KIND
def test_a_seed_is_a_change_and_the_global_stream_is_left_alone(cls: Class, kind: Kind) -> None:
    code, transform = kind.code(dtype=torch.float32), acting(cls)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, second = (drawn(transform, code, kind.layout).apply(code) for _ in range(2))
    assert torch.equal(bits(first), bits(second))
    assert torch.equal(torch.get_rng_state(), before)


@EVERY_TRANSFORM
def test_without_a_generator_the_global_stream_is_the_source(cls: Class) -> None:
    code, transform = KINDS["2-D"].code(dtype=torch.float32), acting(cls)
    torch.manual_seed(SEED)
    first = transform(code, **asked(code)).apply(code)
    assert torch.equal(bits(first), bits(drawn(transform, code).apply(code)))


@EVERY_TRANSFORM
def test_nothing_is_read_back_from_the_device(cls: Class) -> None:
    """A meta tensor has no numbers, so that whatever would make the host wait for a GPU raises."""
    code = torch.empty(4, 6, 5, 7, device="meta")
    changed = drawn(acting(cls), code).apply(code)
    assert changed.device.type == "meta"


# Copies -----------------------------------------------------------------------------------------------------------


@EVERY_TRANSFORM
@EVERY_KIND
def test_copies_and_pickles_of_transforms_and_changes_do_the_same(cls: Class, kind: Kind) -> None:
    code, transform = kind.code(dtype=torch.float32), acting(cls)
    change = drawn(transform, code, kind.layout)
    expected = change.apply(code)
    for twin in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert repr(twin) == repr(transform)
        assert torch.equal(bits(drawn(twin, code, kind.layout).apply(code)), bits(expected))
    for again in (copy.deepcopy(change), pickle.loads(pickle.dumps(change))):
        assert repr(again) == repr(change)
        assert torch.equal(bits(again.apply(code)), bits(expected))
    assert not list(transform.parameters())


@EVERY_SINGLE
def test_a_transform_prints_as_what_makes_it(cls: Class) -> None:
    assert repr(cls()) == f"{cls.__name__}()"
    for transform in (acting(cls), cls()):
        assert repr(eval(repr(transform), vars(latentaug))) == repr(transform)


@EVERY_TRANSFORM
def test_a_composition_prints_its_parts(cls: Class) -> None:
    assert repr(acting(cls)).startswith(f"{cls.__name__}(")


# Compiled ---------------------------------------------------------------------------------------------------------


@EVERY_SINGLE
@pytest.mark.parametrize("kind", [KINDS["2-D"], KINDS["tokens"]], ids=["2-D", "tokens"])
def test_a_change_compiles_without_a_graph_break(cls: Class, kind: Kind) -> None:
    code, transform = kind.code(dtype=torch.float32), acting(cls)
    shown, params = kind.layout.to_channels_first(code), drawn(transform, code, kind.layout).params
    torch.compiler.reset()
    compiled = torch.compile(transform.transform, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(shown, **params), transform.transform(shown, **params))


# Kept, and over a training ----------------------------------------------------------------------------------------

NUMBERS = ("p", "strength", "radius", "fraction", "percentile")


@EVERY_SINGLE
def test_every_number_may_be_a_schedule_and_every_change_is_kept(cls: Class) -> None:
    names = [name for name in NUMBERS if name in inspect.signature(cls).parameters]
    transform = cls(**{name: Schedule(0.2, 0.9, iterations=2) for name in names})
    assert sum(isinstance(one, Schedule) for one in transform.modules()) == len(names) > 0
    code = KINDS["2-D"].code(dtype=torch.float32)
    for _ in range(3):
        change = drawn(transform, code)
        file = io.BytesIO()
        torch.save(change.state_dict(), file)
        file.seek(0)
        again = transform.change_from(torch.load(file, weights_only=True))
        assert torch.equal(again.apply(code), change.apply(code))
        transform.step()
    assert {getattr(transform, name).value for name in names} <= {0.9}


# On another device ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@EVERY_TRANSFORM
def test_a_generator_on_the_cpu_samples_the_same_for_a_gpu(cls: Class) -> None:
    code = KINDS["2-D"].code(dtype=torch.float32)
    here, there = (drawn(acting(cls), one) for one in (code, code.cuda()))
    torch.testing.assert_close(there.apply(code.cuda()).cpu(), here.apply(code), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(there.to("cpu").apply(code), here.apply(code), rtol=1e-3, atol=1e-3)
