"""Logits are found in what models return, or the user is told what there is."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from latentaug.cooperative.logits import at_size, finest, read_logits

LOGITS, COARSE = torch.zeros(2, 3, 8, 10), torch.zeros(2, 3, 4, 5)
FEATURES, SCALAR, VECTOR = torch.zeros(2, 7, 8, 10), torch.tensor(0.0), torch.zeros(2, 3)


class Named(NamedTuple):
    loss: Tensor | None
    logits: Tensor


@dataclass
class Output:
    seg: Tensor
    features: Tensor


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (LOGITS, [LOGITS]),
        ({"out": LOGITS}, [LOGITS]),
        (OrderedDict(out=LOGITS, aux=COARSE), [LOGITS, COARSE]),
        ({"out": LOGITS, "hidden": [COARSE]}, [LOGITS]),
        ({"loss": SCALAR, "logits": LOGITS, "hidden_states": (COARSE,)}, [LOGITS]),
        (Named(SCALAR, LOGITS), [LOGITS]),
        (Named(None, LOGITS), [LOGITS]),
        ((LOGITS, SCALAR), [LOGITS]),
        ((SCALAR, LOGITS), [LOGITS]),
        ((LOGITS, None), [LOGITS]),
        ((LOGITS, VECTOR), [LOGITS]),
        ((LOGITS, FEATURES), [LOGITS]),
        ([LOGITS, COARSE], [LOGITS, COARSE]),
        ((LOGITS, [COARSE]), [LOGITS, COARSE]),
        (({"out": LOGITS}, FEATURES), [LOGITS]),
        ({"seg": LOGITS, "reconstruction": FEATURES}, [LOGITS]),
        (Output(LOGITS, FEATURES), [LOGITS]),
    ],
)
def test_logits_are_found(output: Any, expected: list[Tensor]) -> None:
    found = read_logits(output, num_classes=3, spatial_dims=2)
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


def test_stacked_outputs_are_taken_apart() -> None:
    first, second, *rest = read_logits(torch.stack([LOGITS, LOGITS + 1], 1), num_classes=3, spatial_dims=2)
    assert not rest
    assert torch.equal(first, LOGITS)
    assert torch.equal(second, LOGITS + 1)


def test_volumes_are_no_stacks() -> None:
    volume = torch.zeros(2, 3, 3, 8, 10)
    assert len(read_logits(volume, num_classes=3, spatial_dims=3)) == 1


def test_a_reader_is_believed() -> None:
    output = {"masks": LOGITS, "edges": LOGITS + 1}
    assert torch.equal(read_logits(output, 3, 2, lambda output: output["edges"])[0], LOGITS + 1)
    assert len(read_logits(output, 3, 2, lambda output: list(output.values()))) == 2


def test_names_that_say_nothing_are_unclear() -> None:
    with pytest.raises(ValueError, match=r"cannot tell which of masks, edges are the logits. Pass logits="):
        read_logits({"masks": LOGITS, "edges": LOGITS}, 3, 2)


@pytest.mark.parametrize("output", [None, {"loss": None}, "text", []])
def test_no_tensor_at_all(output: Any) -> None:
    with pytest.raises(TypeError, match=f"finds no logits in what the model returns, a {type(output).__name__}"):
        read_logits(output, 3, 2)


@pytest.mark.parametrize("output", [VECTOR, FEATURES, (SCALAR, FEATURES), {"out": FEATURES}])
def test_no_tensor_of_the_shape(output: Any) -> None:
    with pytest.raises(ValueError, match=r"needs logits \[B, 3, \*S\] with 2 spatial axes; got .* `num_classes`"):
        read_logits(output, 3, 2)


def test_a_reader_that_returns_other_things_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 10\), \(2, 7, 8, 10\)"):
        read_logits((LOGITS, FEATURES), 3, 2, lambda output: output)


def test_the_finest_are_those_of_the_highest_resolution() -> None:
    assert finest([COARSE, LOGITS, LOGITS]) == [1, 2]


def test_shares_halve_with_the_resolution_and_add_up_to_one() -> None:
    quarter = torch.zeros(2, 3, 2, 2)
    prediction = at_size([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4), quarter], 0, (8, 8))
    assert prediction.shares == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert all(logits.shape[2:] == (8, 8) for logits in prediction.outputs)


def test_one_output_is_the_loss_itself() -> None:
    prediction = at_size([LOGITS], 0, (8, 10))
    marker = object()
    assert prediction.loss(lambda logits, labels: marker, LOGITS) is marker
