"""The code of networks that the library was not made with: found where their own code says, and replayed exactly.

Packages that are not installed are skipped. `docs/reference/models.md` says how to install them, and how many were
found.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.discovery.bottleneck import find_bottleneck
from latentaug.tap.latent_tap import LatentTap
from tests.integrations.strangers import MISSED, STRANGERS, UNREPLAYED, Stranger, output_of
from tests.support.compare import same
from tests.support.oracle import change_code, unchanged
from tests.support.random_streams import seed_all

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # what the packages themselves use
]

FOUND = [one for one in STRANGERS if one.layer]
WITHOUT = [one for one in STRANGERS if not one.layer]


def test_there_are_many_from_many_packages() -> None:
    assert len({str(one) for one in STRANGERS}) == len(STRANGERS) >= 45
    assert len({one.package for one in STRANGERS}) >= 12
    assert set(MISSED) <= {str(one) for one in STRANGERS}


@pytest.mark.parametrize("one", [one for one in FOUND if str(one) not in MISSED], ids=str)
def test_the_code_is_found_and_replays_equal_the_oracle(one: Stranger) -> None:
    model, arguments = one.model(), one.arguments()
    location = find_bottleneck(model, arguments)
    assert str(location) == one.layer
    if str(one) in UNREPLAYED:
        return
    with torch.no_grad():
        with LatentTap(model, location) as tap:
            seed_all(0)
            output = model(*arguments)
            fast, full = (tap.replay(changed(tap.code), full=full) for full in (False, True))
            assert same(tap.replay(None), output)
        watched = change_code(model, location.name, location.index, None, unchanged)
        model(*arguments)
        change_code(model, location.name, location.index, watched.calls - 1, changed)
        seed_all(0)
        expected = model(*arguments)
    assert same(output_of(fast), output_of(expected))
    assert same(output_of(full), output_of(expected))
    assert not same(output_of(expected), output_of(output))


def changed(code: Tensor) -> Tensor:
    """Change a code such that it shows also where the signal of an untrained network has died."""
    return code * 0.5 + 1


@pytest.mark.parametrize("one", WITHOUT, ids=str)
def test_networks_without_a_coarser_grid_are_refused_with_codes_named(one: Stranger) -> None:
    with pytest.raises(ValueError, match=r"Pass layer= .*: all of the output comes of '") as refusal:
        find_bottleneck(one.model(), one.arguments())
    assert "on a coarser grid than the input" in str(refusal.value)


@pytest.mark.parametrize("one", [one for one in FOUND if str(one) in MISSED], ids=str)
def test_what_is_missed_is_known(one: Stranger) -> None:
    with torch.no_grad():
        assert _found(one.model(), one.arguments()) != one.layer


def _found(model: nn.Module, arguments: tuple[Any, ...]) -> str:
    try:
        return str(find_bottleneck(model, arguments))
    except ValueError as refusal:
        return str(refusal)
