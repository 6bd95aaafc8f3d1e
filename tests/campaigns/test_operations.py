"""Whatever is done to a model, in whatever order: nothing is left on it, and it keeps what it would keep by itself."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as hypothesis_seed
from hypothesis.stateful import run_state_machine_as_test

from latentaug.tap.latent_tap import LatentTap
from tests.campaigns.day import count, seed, shares
from tests.campaigns.operations import Operations

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PARTS = 4


def play(first: int, sequences: int, steps: int) -> None:
    """Play as many sequences of operations, from a seed on."""
    chosen = settings(
        max_examples=sequences,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(hypothesis_seed(first)(type("Played", (Operations,), {})), settings=chosen)
    except BaseException as error:
        error.add_note(f"LATENTAUG_SEED={seed()}, sequences from {first}") if hasattr(error, "add_note") else None
        raise


def test_a_few_sequences_of_operations_leave_no_trace() -> None:
    play(1, 12, 8)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_sequences_of_the_day_leave_no_trace(part: int) -> None:
    print(f"LATENTAUG_SEED={seed()}")
    play(seed() * PARTS + part, len(shares(count("sequences", 1000), PARTS)[part]), 12)


def test_a_tap_that_leaves_something_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(self: LatentTap, *_: object) -> None:
        self._root.left = True
        original(self, *_)

    original = LatentTap.__exit__
    monkeypatch.setattr(LatentTap, "__exit__", leave)
    with pytest.raises(AssertionError, match=r"left on the model|keeps something else"):
        play(1, 12, 8)
