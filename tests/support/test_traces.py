"""Traces: whatever a tap could leave behind shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.models.hostile.statistics import Normalised
from tests.models.hostile.table import CASES
from tests.support.traces import traces

LEFT: dict[str, Callable[[Any], Any]] = {
    "a forward hook": lambda model: model.stem.register_forward_hook(lambda *_: None),
    "a forward hook with keywords": lambda model: model.stem.register_forward_hook(lambda *_: None, with_kwargs=True),
    "a pre-hook": lambda model: model.stem.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda model: model.stem.register_full_backward_hook(lambda *_: None),
    "a backward pre-hook": lambda model: model.stem.register_full_backward_pre_hook(lambda *_: None),
    "a forward": lambda model: model.stem.__dict__.__setitem__("forward", model.stem.forward),
    "a compiled call": lambda model: model.stem.__dict__.__setitem__("_compiled_call_impl", model.stem.forward),
    "a mode": lambda model: model.norms.eval(),
    "a momentum": lambda model: setattr(model.norms[0], "momentum", 0.0),
    "statistics not tracked": lambda model: setattr(model.norms[0], "track_running_stats", False),
    "another buffer": lambda model: setattr(model.norms[0], "running_mean", torch.zeros(4)),
    "a weight changed in place": lambda model: model.stem.weight.detach().mul_(1),
    "another weight": lambda model: setattr(model.stem, "weight", torch.nn.Parameter(torch.zeros(4, 3, 3, 3))),
    "a frozen weight": lambda model: model.stem.requires_grad_(False),
}


def normalised() -> Normalised:
    model = CASES["BatchNorm"].model(True)
    assert isinstance(model, Normalised)
    return model


def test_traces_notice_what_is_left_behind() -> None:
    model = normalised()
    before = traces(model)
    assert traces(model) == before
    for leave in LEFT.values():
        before = traces(model)
        leave(model)
        assert traces(model) != before


@pytest.mark.parametrize("leave", LEFT.values(), ids=LEFT)
def test_all_but_another_buffer_shows_where_buffers_are_left_out(leave: Callable[[Any], Any]) -> None:
    model = normalised()
    before = traces(model, buffers=False)
    leave(model)
    assert (traces(model, buffers=False) == before) is (leave is LEFT["another buffer"])
