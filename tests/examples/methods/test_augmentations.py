"""Augmentation that any method can be trained with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentaug import GIN, RandConv, StrongIntensity
from study.data.augment import rescale
from study.methods.augmentations import AUGMENTATIONS, NONE, STRONG, rescaled

CHANGING = {name: augment for name, augment in AUGMENTATIONS.items() if name != NONE}
EVERY = pytest.mark.parametrize("name", CHANGING)
PARTS = ("noise", "blur", "brightness", "contrast", "resolution", "inverted_gamma", "gamma")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slices(n: int = 6, height: int = 24, width: int = 20) -> Tensor:
    return rescale(torch.rand(n, 1, height, width, generator=seeded(7)))


def test_none_is_no_change_and_comes_first() -> None:
    assert AUGMENTATIONS[NONE] is None
    assert [*AUGMENTATIONS] == ["none", "strong", "nnunet", "bias-field", "randconv", "gin"]


@EVERY
@given(seed=st.integers(0, 2**32), n=st.integers(1, 5), height=st.integers(8, 30), width=st.integers(8, 30))
def test_slices_keep_their_shape_and_span_0_to_1(name: str, seed: int, n: int, height: int, width: int) -> None:
    changed = CHANGING[name](slices(n, height, width), seeded(seed))
    assert changed.shape == (n, 1, height, width)
    assert changed.dtype == torch.float32
    assert torch.equal(changed.amin((1, 2, 3)), torch.zeros(n))
    torch.testing.assert_close(changed.amax((1, 2, 3)), torch.ones(n))


@EVERY
def test_the_generator_decides_and_nothing_else(name: str) -> None:
    images, before = slices(), torch.get_rng_state()
    kept, augment = images.clone(), CHANGING[name]
    assert torch.equal(augment(images, seeded(1)), augment(images, seeded(1)))
    assert not torch.equal(augment(images, seeded(1)), augment(images, seeded(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)


@EVERY
def test_slices_change_each_in_its_own_way_and_some_not_at_all(name: str) -> None:
    images = slices(1).expand(200, -1, -1, -1)
    changed = CHANGING[name](images, seeded())
    same = (changed - images).abs().flatten(1).amax(1) < 1e-6
    unchanged = 0.5
    if name in ("strong", "nnunet"):  # a brightness below 1 is undone by the scaling, a zoom of 1 is none: more stay
        chances = [getattr(STRONG if name == "strong" else StrongIntensity(), part) for part in PARTS]
        unchanged = float((1 - torch.tensor(chances)).prod())
    assert unchanged - 0.1 < float(same.float().mean()) < unchanged + 0.15
    of_their_own = len(changed[~same].flatten(1).unique(dim=0))
    assert of_their_own > 0.9 * int((~same).sum())  # a lower resolution has few sizes to choose from


def test_gin_is_the_librarys_at_a_chance_of_a_half_and_so_is_randconv() -> None:
    for name, transform in (("gin", GIN(p=0.5)), ("randconv", RandConv(p=0.5)), ("nnunet", StrongIntensity())):
        expected = rescale(transform.augment(slices(), generator=seeded(3)))
        assert torch.equal(CHANGING[name](slices(), seeded(3)), expected), name


def test_strong_has_no_part_less_often_than_nnunet() -> None:
    for part in PARTS:
        assert getattr(STRONG, part) >= getattr(StrongIntensity(), part), part
    assert STRONG.gamma == STRONG.noise == 0.5


def test_rescaling_undoes_what_a_transform_does_to_the_range() -> None:
    images = slices()
    times = rescaled(RandConv((1,), strength=1.0))(images, seeded())  # each slice times a number
    upright, inverted = ((times - one).abs().flatten(1).amax(1) < 1e-5 for one in (images, 1 - images))
    assert (upright | inverted).all()
