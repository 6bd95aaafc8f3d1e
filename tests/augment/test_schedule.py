"""Numbers that move over the iterations, and how far they are is kept."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

from latentaug import Compose, DropBlock, MixStyle, OneOf, RandomApply, RandomChannelMask, Schedule, TargetedChannelMask
from tests.support.codes import seeded


def at(schedule: Schedule, iteration: int) -> float | tuple[float, float]:
    schedule = copy.deepcopy(schedule)
    schedule.step(iteration)
    return schedule.value


def test_moves_from_start_to_stop_and_stays_there() -> None:
    schedule = Schedule(0.2, 0.6, iterations=4)
    assert [at(schedule, i) for i in (0, 1, 2, 3, 4, 50)] == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6, 0.6])
    assert at(schedule, 4) == 0.6  # no rounding left
    assert at(Schedule(0.6, 0.2, iterations=4), 1) == pytest.approx(0.5)


def test_waits_and_is_slow_at_the_ends_of_a_cosine() -> None:
    waiting = Schedule(0, 1, iterations=2, after=3)
    assert [at(waiting, i) for i in (0, 3, 4, 5)] == [0, 0, 0.5, 1]
    cosine = Schedule(0, 1, iterations=4, shape="cosine")
    assert [at(cosine, i) for i in range(5)] == pytest.approx([0, 0.5 - 0.5**1.5, 0.5, 0.5 + 0.5**1.5, 1])


def test_pairs_move_end_by_end() -> None:
    schedule = Schedule((0.0, 0.2), (0.4, 0.8), iterations=2)
    assert schedule.value == (0.0, 0.2)
    assert at(schedule, 1) == pytest.approx((0.2, 0.5))


def test_a_transform_samples_by_the_number_of_the_iteration() -> None:
    transform = RandomChannelMask(p=Schedule(0.0, 1.0, iterations=2), rescale=False)
    code = torch.ones(2, 1000, 1)
    fractions = []
    for _ in range(3):
        fractions.append(float(transform(code, generator=seeded()).factor.mean()))
        transform.step()
    assert fractions == pytest.approx([1, 0.5, 0], abs=0.05)


def test_percentiles_and_gates_are_scheduled_too() -> None:
    code = torch.randn(1, 8, 3, generator=seeded())
    masker = TargetedChannelMask(percentile=Schedule(0.0, 0.5, iterations=1), annealing=0)
    assert masker(code, code).factor.sum() == 8
    masker.step()
    assert masker(code, code).factor.sum() == 4
    gate = RandomApply(masker, p=Schedule(0.0, 1.0, iterations=1))
    assert not gate(code, code).params["changes"]
    gate.step()
    assert gate(code, code).params["changes"]
    style = MixStyle(p=Schedule(0.0, 1.0, iterations=1))
    two = torch.randn(2, 3, 4)
    assert style(two).is_identity
    style.step()
    assert not style(two).is_identity


def test_one_schedule_at_several_places_advances_once() -> None:
    shared = Schedule(0.0, 1.0, iterations=10)
    both = Compose(
        [DropBlock(shared), OneOf([RandomChannelMask(shared), DropBlock(Schedule(0.0, 1.0, iterations=10))])]
    )
    both.step()
    assert shared.iteration == 1
    assert {one.iteration for one in both.modules() if isinstance(one, Schedule)} == {1}


def test_the_state_dict_holds_the_iteration_and_loads_safely() -> None:
    transform = Compose([DropBlock(Schedule(0.0, 0.5, iterations=10)), MixStyle()])
    for _ in range(7):
        transform.step()
    file = io.BytesIO()
    torch.save(transform.state_dict(), file)
    file.seek(0)
    other = Compose([DropBlock(Schedule(0.0, 0.5, iterations=10)), MixStyle()])
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.transforms[0].p.value == transform.transforms[0].p.value == pytest.approx(0.35)
    assert not MixStyle().state_dict()


def test_what_is_printed_says_all_but_the_iteration() -> None:
    schedule = Schedule(0, (0.5), iterations=10, after=2, shape="cosine")
    assert repr(schedule) == "Schedule(0, 0.5, iterations=10, after=2, shape='cosine')"
    before = repr(DropBlock(schedule))
    schedule.step()
    assert repr(DropBlock(schedule)) == before
    assert repr(schedule) in before


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"iterations must be a whole number of iterations, 1 or more; got 0"):
        Schedule(0, 1, iterations=0)
    with pytest.raises(ValueError, match=r"after must be a whole number of iterations, 0 or more; got -1"):
        Schedule(0, 1, iterations=1, after=-1)
    with pytest.raises(ValueError, match=r"shape must be one of 'linear', 'cosine'; got 'step'"):
        Schedule(0, 1, iterations=1, shape="step")
    with pytest.raises(TypeError, match=r"Schedule needs two numbers or two pairs; got 0 and \(0, 1\)"):
        Schedule(0, (0, 1), iterations=1)
    for end in ("a", None, True, [None]):
        with pytest.raises(TypeError, match=r"start must be a number"):
            Schedule(end, end, iterations=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"stop must be a number; got 'b'"):
        Schedule((0, 0), (0, "b"), iterations=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"start must be a number or a pair \(low, high\); got \(0, 1, 2\)"):
        Schedule((0, 1, 2), (0, 1, 2), iterations=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stop must be a finite number; got inf"):
        Schedule(0, math.inf, iterations=1)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]; got 2"):
        DropBlock(Schedule(0.0, 2.0, iterations=1))
    with pytest.raises(ValueError, match=r"p must be a pair \(low, high\) with low <= high"):
        DropBlock(Schedule((0.0, 0.1), (0.2, 0.1), iterations=1))
