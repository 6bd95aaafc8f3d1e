"""Numbers, or pairs that are sampled from: what is taken, what is refused, and what is sampled."""

from __future__ import annotations

import math
import re

import pytest
import torch

from latentaug.augment.ranges import as_range, as_share, draw, source_of

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_number_stays_itself_and_moves_no_stream() -> None:
    generator = seeded()
    before = generator.get_state()
    assert float(draw(0.25, (3,), CPU, generator)) == 0.25
    assert torch.equal(generator.get_state(), before)


def test_a_pair_is_sampled_from_uniformly() -> None:
    sampled = draw((0.25, 0.75), (20000,), CPU, seeded())
    assert sampled.dtype == torch.float32
    assert 0.25 <= float(sampled.min()) < 0.26
    assert 0.74 < float(sampled.max()) < 0.75
    counts = torch.histc(sampled, bins=10, min=0.25, max=0.75)
    assert ((counts - 2000).abs() < 4 * math.sqrt(2000 * 0.9)).all()


def test_a_pair_is_its_ends_from_the_generator_s_own_numbers() -> None:
    expected = 0.2 + 0.5 * torch.rand(4, generator=seeded())
    torch.testing.assert_close(draw((0.2, 0.7), (4,), CPU, seeded()), expected)


def test_without_a_generator_the_source_is_the_cpu() -> None:
    assert source_of(None) == CPU
    assert source_of(seeded()) == CPU


@pytest.mark.parametrize("value", [0, 1, 0.5, (0, 1), [0.25, 0.5], (0.5, 0.5)])
def test_fractions_and_pairs_of_them_are_taken(value: object) -> None:
    taken = as_range("p", value)
    assert taken == (tuple(map(float, value)) if isinstance(value, tuple | list) else float(value))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (50, ValueError, "p must be in [0, 1]; got 50. Did you mean 0.5?"),
        (-0.1, ValueError, "p must be in [0, 1]; got -0.1."),
        (math.nan, ValueError, "p must be in [0, 1]; got nan."),
        ((0.5, 0.25), ValueError, "p must be a pair (low, high) with low <= high; got (0.5, 0.25)."),
        ((0, 2), ValueError, "p must be in [0, 1]; got 2."),
        ((0, 0.5, 1), TypeError, "p must be a number or a pair (low, high); got 3 values"),
        ("half", TypeError, "p must be a number or a pair (low, high); got 'half'."),
        (None, TypeError, "p must be a number or a pair (low, high); got None."),
    ],
)
def test_other_values_are_refused(value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        as_range("p", value)


def test_a_fraction_alone_is_no_pair() -> None:
    with pytest.raises(TypeError, match=r"p must be a number"):
        as_share("p", (0, 1))
