"""How hard examples are made: what the settings take, refuse and show."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from latentaug.augment.adversarial import MaxStyle
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel


@pytest.mark.parametrize("value", [0, 1.5, True, "2"])
def test_other_periods_than_whole_numbers_of_batches_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="saliency_every must be a whole number of batches, 1 or more; got"):
        HardExamples(saliency_every=value)


@pytest.mark.parametrize("name", ["fraction", "scale"])
def test_fractions_outside_their_range_are_refused(name: str) -> None:
    given: dict[str, Any] = {name: 1.5}
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\]; got 1.5"):
        HardExamples(**given)
    given = {name: 0}
    with pytest.raises(ValueError, match=rf"{name} must be above 0; got 0. To train without hard examples"):
        HardExamples(**given)


def test_residuals_that_are_no_fraction_are_refused() -> None:
    with pytest.raises(ValueError, match=r"residual must be in \[0, 1\]; got 2"):
        HardExamples(residual=2)
    with pytest.raises(ValueError, match=r"residual must be a pair \(low, high\) with low <= high; got \(1, 0\)"):
        HardExamples(residual=(1, 0))
    everything: Any = "all"
    with pytest.raises(TypeError, match="residual must be a number or a pair"):
        HardExamples(residual=everything)


@pytest.mark.parametrize("noise", [-0.1, float("inf"), float("nan"), "0.1", True, False])
def test_other_noise_than_a_deviation_or_a_callable_is_refused(noise: Any) -> None:
    with pytest.raises(ValueError, match=r"noise must be 0 or more, or a callable \(images, generator\); got"):
        HardExamples(noise=noise)


def test_one_name_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="frozen_norms must be a list of names; got 'model'"):
        HardExamples(frozen_norms="model")


def test_options_become_plain_numbers_and_tuples_and_compare_by_them() -> None:
    given = HardExamples(residual=[0, 1], fraction=1, frozen_norms=["model"])  # type: ignore[arg-type]
    assert given == HardExamples(residual=(0.0, 1.0), frozen_norms=("model",))
    assert (given.residual, given.fraction, given.frozen_norms) == ((0.0, 1.0), 1.0, ("model",))
    assert hash(given) == hash(HardExamples(residual=(0.0, 1.0), frozen_norms=("model",)))


def test_options_are_shown_where_they_are_on() -> None:
    assert repr(HardExamples()) == "HardExamples()"
    assert repr(HardExamples(fraction=0.5, scale=0.25)) == "HardExamples(fraction=0.5, scale=0.25)"
    every = HardExamples(residual=1, noise=0, saliency_every=2, frozen_norms=["model"], separate=True)
    assert eval(repr(every)) == every


@pytest.mark.parametrize("name", ["separate", "separate_decoder"])
def test_other_switches_than_true_and_false_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be True or False"):
        HardExamples(**{name: 1})


def test_styles_climb_what_mixed_images_have_not() -> None:
    with pytest.raises(ValueError, match="style climbs the loss of hard images"):
        HardExamples(style=MaxStyle(), mix=0.5)


def test_options_that_change_nothing_are_named(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))
    made = functools.partial(CooperativeModel, net, num_classes=2, example=torch.rand(2, 1, 16, 16))
    made(hard=HardExamples(every=2))
    made(shape_prior=True, hard=HardExamples(fraction=0.5, scale=0.5, separate=True))
    made(reconstruction=True, hard=HardExamples(fraction=0.5, residual=0.3, separate_decoder=True))
    assert not caplog.records
    coop = made(hard=HardExamples(fraction=0.5, residual=0.3))
    (record,) = caplog.records
    assert "HardExamples(residual=0.3, fraction=0.5) changes nothing here" in record.message
    coop.hard = HardExamples(separate=True)
    assert "HardExamples(separate=True) changes nothing here" in caplog.records[-1].message
