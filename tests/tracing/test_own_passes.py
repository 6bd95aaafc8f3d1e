"""The library's own passes are known as such, by thread and by model."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

from latentaug.tracing.isolation import sandbox
from latentaug.tracing.own_passes import depth_of, own_passes


def test_contexts_nest_and_end_also_with_an_error() -> None:
    model, other = nn.ReLU(), nn.ReLU()
    with own_passes(model):
        with pytest.raises(KeyError), own_passes(model):
            raise KeyError
        with own_passes(model):
            assert depth_of(model) == 2
        assert (depth_of(model), depth_of(other)) == (1, 0)
    assert depth_of(model) == 0


def test_a_sandbox_is_for_passes_of_our_own() -> None:
    model = nn.Linear(2, 2)
    with sandbox(model, torch.device("cpu")):
        assert depth_of(model) == 1
    assert depth_of(model) == 0


def test_another_thread_is_in_none() -> None:
    model, seen = nn.ReLU(), []
    with own_passes(model):
        thread = threading.Thread(target=lambda: seen.append(depth_of(model)))
        thread.start()
        thread.join()
    assert seen == [0]


def test_models_are_not_kept_alive() -> None:
    model = nn.ReLU()
    with own_passes(model):
        pass
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
