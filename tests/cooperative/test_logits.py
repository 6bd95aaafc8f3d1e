"""Logits are found in what models return, or the user is told what there is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from latentaug.cooperative.logits import at_size, finest, read_logits
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.objective import segmentation_loss
from tests.models.segmenters import Returning, SkipNet, Supervised
from tests.support.cooperation import QUIET, batch, cooperative

LOGITS, COARSE = torch.zeros(2, 3, 8, 10), torch.zeros(2, 3, 4, 5)
FEATURES, SCALAR, VECTOR = torch.zeros(2, 7, 8, 10), torch.tensor(0.0), torch.zeros(2, 3)


class Named(NamedTuple):
    loss: Tensor | None
    logits: Tensor


@dataclass
class Output:
    seg: Tensor
    features: Tensor


# In one output --------------------------------------------------------------------------------------------------------


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


def test_names_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot tell which of masks, edges are the logits. Pass logits="):
        read_logits({"masks": LOGITS, "edges": LOGITS}, 3, 2)


@pytest.mark.parametrize("output", [None, {"loss": None}, "text", []])
def test_no_tensor_at_all_is_refused(output: Any) -> None:
    with pytest.raises(TypeError, match=f"finds no logits in what the model returns, a {type(output).__name__}"):
        read_logits(output, 3, 2)


@pytest.mark.parametrize("output", [VECTOR, FEATURES, (SCALAR, FEATURES), {"out": FEATURES}])
def test_no_tensor_of_the_shape_is_refused(output: Any) -> None:
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


# Of a whole model -----------------------------------------------------------------------------------------------------


def returning(made_of: Callable[[Tensor], Any], **options: Any) -> CooperativeModel:
    return cooperative(lambda: Returning(made_of), codes="bottleneck", **options)


@pytest.mark.parametrize(
    "made_of",
    [
        lambda x: x,
        lambda x: {"out": x, "aux": x},
        lambda x: SimpleNamespace(logits=x),
        lambda x: (x, None),
        lambda x: [x, x[..., ::2, ::2]],
        lambda x: {"logits": [x]},
        lambda x: {"masks": x, "features": x[:, :1]},
        lambda x: torch.stack([x, x * 2], 1),
    ],
)
def test_logits_are_read_from_what_libraries_return(made_of: Callable[[Tensor], Any]) -> None:
    coop = returning(made_of).eval()
    images, labels = batch()
    torch.testing.assert_close(coop(images, labels).logits, SkipNet.forward(coop.model, images))


def test_small_logits_are_interpolated_to_the_labels() -> None:
    coop = returning(lambda logits: F.avg_pool2d(logits, 2))
    images, labels = batch()
    output = coop(images, labels)
    assert output.logits.shape == output.hard_segmentation.shape == (3, 3, 16, 20)
    coop.eval()
    expected = F.interpolate(coop(images), size=(16, 20), mode="bilinear")
    torch.testing.assert_close(coop(images, labels).logits, expected)
    assert torch.equal(coop.predict(images, refine=0), expected.argmax(1))


def test_logits_of_another_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs logits \[B, 3, \*S\] .* got \(3, 4, 16, 20\). Check `num_classes`"):
        cooperative(lambda: SkipNet(num_classes=4))


def test_an_output_without_logits_is_refused_and_a_reader_of_your_own_finds_them() -> None:
    def masks(logits: Tensor) -> dict[str, Tensor]:
        return {"masks": logits.movedim(1, -1)}

    with pytest.raises(ValueError, match=r"needs logits .* got \(3, 16, 20, 3\). .* pass logits="):
        returning(masks)
    coop = returning(masks, logits=lambda output: output["masks"].movedim(-1, 1)).eval()
    images, labels = batch()
    assert torch.equal(coop(images, labels).logits, SkipNet.forward(coop.model, images))
    assert coop.train()(images, labels).loss.isfinite()


# Under deep supervision -----------------------------------------------------------------------------------------------


def test_all_outputs_enter_the_segmentation_losses_by_their_resolution() -> None:
    coop = cooperative(Supervised, codes="bottleneck", hard=QUIET).eval()
    images, labels = batch()
    early, coarse, full = coop(images)
    expected = (
        segmentation_loss(early, labels) / 2.5
        + segmentation_loss(F.interpolate(coarse, size=(16, 20), mode="bilinear"), labels) / 5
        + segmentation_loss(full, labels) / 2.5
    )
    torch.testing.assert_close(coop(images, labels).losses["segmentation"], expected)


def test_every_head_learns_from_the_hard_images_too() -> None:
    coop = cooperative(Supervised, codes="bottleneck")
    output = coop(*batch())
    heads = [coop.get_parameter(f"model.{name}.weight") for name in ("early", "coarse", "final")]
    gradients = torch.autograd.grad(output.losses["hard_image_segmentation"], heads)
    assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_the_segmentation_is_the_finest_output_that_passes_through_the_code() -> None:
    coop = cooperative(Supervised, codes="bottleneck").eval()
    images, labels = batch()
    assert torch.equal(coop(images, labels).logits, coop(images)[2])
    assert torch.equal(coop.predict(images, refine=0), coop(images)[2].argmax(1))
    hard = coop.train()(images, labels)
    assert not torch.equal(hard.hard_segmentation, hard.logits)


def test_a_reader_of_your_own_may_leave_outputs_out() -> None:
    coop = cooperative(Supervised, codes="bottleneck", logits=lambda outputs: outputs[1:]).eval()
    images, labels = batch()
    assert torch.equal(coop(images, labels).logits, coop(images)[2])
    assert len(coop.reader.read(coop(images), (16, 20)).outputs) == 2
