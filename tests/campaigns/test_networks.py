"""Replays of random networks equal whole passes of a twin, or are refused: by the hundred, other ones every day."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
import torch

from tests.campaigns.day import count, seed, shares
from tests.campaigns.networks import network
from tests.campaigns.trials import Verdict, Wrong, described, judge, trial
from tests.support.belongings import belongings, differences

PARTS = 6
RARE = 0.05
"""Fraction of networks that may be refused."""


def verdicts(first: int, numbers: range) -> Iterator[Verdict]:
    """Judge as many networks as there are numbers, from a seed on; what PyTorch itself refuses counts as none."""
    for number in numbers:
        case, own = None, (first * 1_000_003 + number) * 16
        while case is None:
            case, own = trial(own), own + 1
        try:
            yield judge(case)
        except Wrong as error:
            error.args = (f"network {case.seed} of LATENTAUG_SEED={first}: {error}\n{described(case)}",)
            raise


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_few_random_networks_replay_as_whole_passes() -> None:
    assert [one.refused for one in verdicts(1, range(4))] == [""] * 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("part", range(PARTS))
def test_random_networks_of_the_day_replay_as_whole_passes(part: int) -> None:
    found = list(verdicts(seed(), shares(count("networks", 300), PARTS)[part]))
    refused = [f"{one.seed}: {one.refused}" for one in found if one.refused]
    print(
        f"LATENTAUG_SEED={seed()}: {len(found)} networks, {len(refused)} refused,",
        sum(one.fast for one in found),
        "fast",
    )
    assert len(refused) <= max(2, 2 * RARE * len(found)), "\n".join(refused)


def test_a_seed_gives_the_same_network_again() -> None:
    for number in range(5):
        (model, shape), (twin, other) = network(Random(number)), network(Random(number))
        assert shape == other
        assert repr(model) == repr(twin)
        assert not differences(belongings(model), belongings(twin))


def test_a_replay_that_is_wrong_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that forgets to put the random streams back, to name one fault."""
    monkeypatch.setattr("latentaug.tracing.random_state.RandomState.restore", lambda self: torch.manual_seed(0))
    with pytest.raises(Wrong, match=r"^network \d+ of LATENTAUG_SEED=1: "):
        list(verdicts(1, range(4)))
