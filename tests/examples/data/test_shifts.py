"""Shifts to choose by: what each does to a volume, and to nothing else."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from cardiac.data.corruptions import PARAMETERS
from cardiac.data.readers import Frame
from cardiac.data.shifts import PIECES, SEVERITIES, SHIFTS, Kind, column_of, recipe, shift

pytest.importorskip("torchio")

EVERY = [(kind, severity) for kind in SHIFTS for severity in SEVERITIES]


@pytest.fixture
def frame() -> Frame:
    z, y, x = np.meshgrid(np.arange(6), np.arange(48), np.arange(40), indexing="ij")
    image = 0.5 + 0.3 * np.sin(x / 3) * np.cos(y / 4) + 0.02 * z
    image = (image - image.min((1, 2), keepdims=True)) / np.ptp(image, (1, 2), keepdims=True)
    labels, structures = (image > 0.6).astype(np.uint8), ("LV", "MYO", "RV")
    return Frame("007", "ED", image.astype(np.float32), labels, (10.0, 1.36719, 1.36719), structures, {}, {})


@pytest.mark.parametrize(("kind", "severity"), EVERY)
def test_a_shift_changes_the_image_alone_and_scales_every_slice_again(frame: Frame, kind: str, severity: int) -> None:
    before = frame.image.copy()
    shifted = shift(frame, kind, severity)
    assert shifted.image.shape == frame.image.shape
    assert shifted.image.dtype == np.float32
    assert np.abs(shifted.image - frame.image).max() > 0.02
    assert shifted.labels is frame.labels
    np.testing.assert_array_equal(frame.image, before)
    np.testing.assert_array_equal(shifted.image.min((1, 2)), np.zeros(6))
    np.testing.assert_allclose(shifted.image.max((1, 2)), np.ones(6), rtol=1e-6)


@pytest.mark.parametrize(("kind", "severity"), EVERY)
def test_the_result_depends_on_the_key_and_on_no_random_state(frame: Frame, kind: str, severity: int) -> None:
    first = shift(frame, kind, severity).image
    torch.rand(7)
    state = torch.get_rng_state()
    np.testing.assert_array_equal(shift(frame, kind, severity).image, first)
    assert torch.equal(torch.get_rng_state(), state)
    others = [dataclasses.replace(frame, patient=f"{number:03}") for number in range(4)]
    others += [dataclasses.replace(frame, phase="ES")]
    assert any(not np.array_equal(shift(other, kind, severity).image, first) for other in others)


@pytest.mark.parametrize("kind", SHIFTS)
def test_severities_differ_and_the_highest_changes_most(frame: Frame, kind: str) -> None:
    patients = [dataclasses.replace(frame, patient=f"{number:03}") for number in range(8)]
    changes = [
        np.mean([np.abs(shift(patient, kind, severity).image - frame.image).mean() for patient in patients])
        for severity in SEVERITIES
    ]
    assert changes == sorted(changes)
    assert len({*SHIFTS[kind].strengths}) == 3


def test_who_chooses_by_these_has_seen_no_artefact_of_the_tests(monkeypatch: pytest.MonkeyPatch, frame: Frame) -> None:
    import torchio

    used: set[str] = set()
    for name in [name for name in dir(torchio) if name.startswith("Random")]:
        monkeypatch.setattr(torchio, name, _noted(name, getattr(torchio, name), used))
    for kind in SHIFTS:
        shift(frame, kind, 2)
    assert used == {"RandomAnisotropy", "RandomBlur", "RandomNoise", "RandomGamma"}
    assert not used & {name for name, _ in PARAMETERS.values()}


def _noted(name: str, made: type, used: set[str]) -> object:
    def make(**parameters: object) -> object:
        used.add(name)
        return made(**parameters)

    return make


def change(kind: str, volume: torch.Tensor, strength: float) -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return SHIFTS[kind].change(volume, strength)


def test_a_histogram_warp_rises_from_0_to_1_by_straight_pieces() -> None:
    values = torch.linspace(0, 1, 8 * PIECES + 1).view(1, 1, -1)
    warped = change("Histogram", values, 1.0).flatten()
    assert warped[0] == 0
    assert warped[-1] == pytest.approx(1)
    slopes = warped.diff().view(PIECES, -1)
    assert slopes.min() > 0
    torch.testing.assert_close(slopes, slopes[:, :1].expand_as(slopes), rtol=1e-2, atol=1e-6)
    assert slopes[:, 0].max() > 2 * slopes[:, 0].min()
    torch.testing.assert_close(change("Histogram", values, 0.0), values)


def test_inversion_takes_contrast_from_bright_voxels_and_then_turns_it() -> None:
    values = torch.linspace(0, 1, 101).view(1, 1, -1)
    less, none, turned = (change("Inversion", values, amount).flatten() for amount in (0.25, 0.5, 1.0))
    dark = slice(0, 40)
    for one in (less, none, turned):
        torch.testing.assert_close(one[dark], values.flatten()[dark])
    assert (less.diff() > 0).all()
    assert none[60:].diff().abs().max() < 1e-6
    assert (turned[61:].diff() < 0).all()


def test_signal_is_lost_at_places_and_never_gained() -> None:
    lost = change("SignalLoss", torch.ones(2, 60, 60), 0.8)
    assert lost.max() <= 1
    assert lost.min() < 0.25
    assert (lost > 0.99).float().mean() > 0.3
    assert torch.equal(lost[0], lost[1])


def test_gamma_goes_both_ways() -> None:
    half = torch.full((1, 2, 2), 0.5)
    found = set()
    for seed in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.add(round(float(SHIFTS["Gamma"].change(half, 0.5).mean()), 3))
    assert found == {round(0.5 ** np.exp(sign * 0.5), 3) for sign in (-1, 1)}


def test_a_recipe_tells_kinds_severities_and_strengths_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [recipe(kind, severity) for kind, severity in EVERY]
    monkeypatch.setitem(SHIFTS, "Blur", Kind(SHIFTS["Blur"].change, (9.0, 9.1, 9.2)))  # type: ignore[index]
    recipes.append(recipe("Blur", 1))
    assert len({json.dumps(one) for one in recipes}) == len(EVERY) + 1


def test_columns_are_called_by_kind_and_severity() -> None:
    assert column_of("Blur", 2) == "Blur 2"


@pytest.mark.parametrize(("kind", "severity", "named"), [("Bias", 1, "kind"), ("Blur", 4, "severity")])
def test_unknown_names_are_refused(frame: Frame, kind: str, severity: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"`{named}` must be one of"):
        shift(frame, kind, severity)
