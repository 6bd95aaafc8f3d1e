"""Where the time of a step goes: what is told apart, and that nothing is lost or counted twice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.networks import LITTLE
from benchmarks.parts import BACKWARD, MARK, REST, by_part, fractions
from benchmarks.variants import build


def event(name: str, start: int, took: int, *children: Any, sequence: int = -1) -> Any:
    one = SimpleNamespace(name=name, cpu_parent=None, cpu_children=list(children), sequence_nr=sequence)
    one.self_cpu_time_total = took
    one.time_range = SimpleNamespace(start=start)
    for child in children:
        child.cpu_parent = one
    return one


def flat(*roots: Any) -> list[Any]:
    return [one for root in roots for one in (root, *flat(*root.cpu_children))]


def test_backward_operations_belong_to_the_part_of_their_forward_ones() -> None:
    step = event(
        MARK + REST,
        0,
        1,
        event(MARK + "pass", 1, 2, event("aten::conv2d", 2, 10, sequence=5)),
        event(MARK + "losses", 20, 3, event("aten::nll_loss", 21, 4, sequence=6)),
        event(BACKWARD + "NllLossBackward0", 30, 5, event("aten::nll_loss_backward", 31, 6), sequence=6),
        event(BACKWARD + "ConvolutionBackward0", 40, 7, event("aten::convolution_backward", 41, 20), sequence=5),
    )
    assert by_part(flat(step)) == {"rest": 1, "pass": 12, "losses": 7, "losses, backward": 11, "pass, backward": 27}


def test_a_replay_and_a_saliency_keep_what_runs_within_them() -> None:
    inner = event(MARK + "pass", 2, 3, event("aten::conv2d", 3, 4, sequence=7))
    gradient = event(
        BACKWARD + "ConvolutionBackward0", 12, 5, event("ConvolutionBackward0", 13, 6, sequence=7), sequence=7
    )
    later = event(BACKWARD + "ConvolutionBackward0", 22, 8, sequence=7)
    replay, saliency = event(MARK + "replay", 1, 2, inner), event(MARK + "saliency", 11, 1, gradient)
    assert by_part(flat(replay, saliency, later)) == {"replay": 9, "saliency": 12, "replay, backward": 8}


def test_the_parts_of_a_step_add_up_to_all_of_it() -> None:
    variant = build(LITTLE[0], "default", torch.device("cpu"))
    assert variant.model is not None
    variant.step()
    found = fractions(variant.model, variant.step, repeats=1)
    assert sum(found.values()) == pytest.approx(1)
    assert {"pass", "pass, backward", "losses", "masks", "image head", "shape prior", REST} <= found.keys()
    assert not variant.model.model._forward_hooks
