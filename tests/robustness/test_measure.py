"""Measuring: the right Dice of each case, on the same images for every model, and nothing left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.robustness import intensity_shifts, measure
from latentaug.robustness.measure import dice_of_cases


class Threshold(nn.Module):
    """Segments what is brighter than a threshold, and counts the images that it saw."""

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold, self.seen = threshold, []
        self.norm = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> dict[str, Any]:
        assert not self.training
        self.seen.append(images.clone())
        return {"out": torch.cat([self.threshold - images, images - self.threshold], 1), "aux": [images]}


def batches(count: int = 2) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.rand(3, 4, 4, generator=generator).repeat_interleave(4, 1).repeat_interleave(4, 2) > 0.5
        made.append((0.2 + 0.6 * labels[:, None].float(), labels.long()))
    return made


def test_clean_images_are_scored_as_they_are_and_shifted_ones_worse() -> None:
    found = measure(Threshold(), batches(), num_classes=2)
    assert found.cell("model").dice == 1
    assert len(found.scores["model", "none", 0]) == 6
    assert 0 < found.average("model").dice < 1
    assert found.cell("model", "noise", 5).dice < found.cell("model", "noise", 1).dice
    assert {severity for _, shift, severity in found.scores if shift == "blur"} == {1, 2, 3, 4, 5}


def test_all_models_see_the_same_images_and_a_further_shift_changes_no_other() -> None:
    def seen(shifts: list[str]) -> list[Tensor]:
        one, other = Threshold(), Threshold()
        chosen = {name: shift for name, shift in intensity_shifts().items() if name in shifts}
        measure({"one": one, "other": other}, batches(), num_classes=2, shifts=chosen, severities=[2])
        assert all(map(torch.equal, one.seen, other.seen))
        return one.seen

    few, more = seen(["gamma"]), seen(["noise", "gamma"])
    assert torch.equal(few[1], more[2])
    assert torch.equal(few[3], more[5])


def test_a_seed_gives_the_same_images_and_another_others() -> None:
    def noisy(seed: int) -> list[float]:
        model = Threshold()
        measure(
            model, batches(1), num_classes=2, shifts={"noise": intensity_shifts()["noise"]}, severities=[5], seed=seed
        )
        return model.seen[1].flatten().tolist()

    assert noisy(0) == noisy(0) != noisy(1)


def test_models_are_left_as_they_were() -> None:
    model = Threshold().train()
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    measure(model, batches(1), num_classes=2, severities=[1])
    assert (model.training, model.norm.training) == (True, False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_done_after_the_shift_is_done_to_clean_images_too() -> None:
    model = Threshold()
    measure(model, batches(1), num_classes=2, severities=[1], then=lambda images: images * 0 + 1)
    assert all((images == 1).all() for images in model.seen)


def test_a_shift_of_ones_own() -> None:
    found = measure(
        Threshold(),
        batches(),
        num_classes=2,
        shifts={"dark": lambda images, severity, _: images / severity},
        severities=[1, 5],
    )
    assert found.cell("model", "dark", 1).dice == 1
    assert found.cell("model", "dark", 5).dice == 0
    assert found.cell("model", "dark", 5).failures == 1


@pytest.mark.parametrize("of", ["torchvision", "smp", "mapping"])
def test_models_and_batches_of_other_libraries(of: str) -> None:
    data: Any = batches(1)
    if of == "torchvision":
        library = pytest.importorskip("torchvision").models.segmentation
        model = library.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
        data = [(images.repeat(1, 3, 2, 2), labels.repeat(1, 2, 2)) for images, labels in data]
    elif of == "smp":
        library = pytest.importorskip("segmentation_models_pytorch")
        model = library.Unet("resnet18", encoder_weights=None, in_channels=1, classes=2)
        data = [(images.repeat(1, 1, 2, 2), labels.repeat(1, 2, 2)) for images, labels in data]
    else:
        model, data = Threshold(), [{"image": images, "label": labels[:, None]} for images, labels in data]
    found = measure(model, data, num_classes=2, severities=[3])
    assert 0 <= found.average("model").dice <= 1


def test_dice_is_of_classes_that_are_there_and_nan_where_none_is() -> None:
    logits = torch.zeros(3, 3, 2, 2)
    logits[:, 0] = 1
    logits[0, 1, 0, 0] = 2
    labels = torch.zeros(3, 2, 2).long()
    labels[0, 0, :] = 1
    labels[2] = 2
    first, second, third = dice_of_cases(logits, labels, 3)
    assert first == pytest.approx(2 / 3)
    assert second != second
    assert third == 0
    labels[2] = -100
    assert dice_of_cases(logits, labels, 3)[2] != dice_of_cases(logits, labels, 3)[2]


def test_a_class_that_is_ignored_is_not_scored() -> None:
    labels = torch.tensor([[[1, 1], [0, 2]]])
    logits = nn.functional.one_hot(torch.tensor([[[1, 1], [2, 2]]]), 3).movedim(3, 1).float()
    assert dice_of_cases(logits, labels, 3, ignore_index=2) == [1.0]
    assert dice_of_cases(logits, labels, 3)[0] < 1


class Ended(nn.Module):
    """Returns several outputs of one size, or what has an activation at its end."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        self.end = end

    def forward(self, images: Tensor) -> Any:
        return self.end(8 * (images - 0.5))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (torch.sigmoid, "returns what looks like probabilities"),
        (lambda logits: [-logits, logits], "Of the 2 outputs of a list, 2 have one size, and the first of these"),
        (lambda logits: logits, ""),
        (lambda logits: [logits, logits[..., ::2, ::2]], ""),
    ],
)
def test_what_may_be_read_wrongly_is_told_once(end: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    found = measure(Ended(end), batches(), num_classes=1, severities=[1])
    assert [said in record.message for record in caplog.records] == [True] * bool(said)
    assert (found.cell("model").dice == 1) is not bool(said)


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"models": {}}, ValueError, "models must hold one model at least"),
        ({"models": {"one": "two"}}, TypeError, "models must be modules, by name; got str as 'one'"),
        ({"loader": []}, ValueError, "loader must yield one batch at least"),
        ({"loader": [torch.rand(2, 1, 8, 8)]}, TypeError, "loader must yield pairs"),
        ({"loader": [(torch.rand(2, 1, 8, 8), torch.ones(2, 4, 4))]}, ValueError, "labels of the size of the images"),
        ({"severities": [0]}, ValueError, "severities must be some of 1 to 5; got"),
        ({"severities": []}, ValueError, "severities must be some of 1 to 5; got"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        (
            {"shifts": {"cut": lambda images, *_: images[:1]}},
            ValueError,
            r"shifts\['cut'\] must return images of shape",
        ),
        ({"shifts": {"one": lambda images: images}}, RuntimeError, r"shifts\['one'\], a callable \(images, severity, "),
        (
            {"then": lambda images: images @ torch.ones(3)},
            RuntimeError,
            r"then, a callable \(images\) -> images, ",
        ),
        ({"loader": [{"image": 1, "mask": 2}]}, TypeError, r"got a dict with keys \['image', 'mask'\]"),
        ({"ignore_index": 1}, ValueError, "ignore_index must leave a class but the background"),
    ],
)
def test_wrong_calls_are_told(changed: dict[str, Any], error: type[Exception], said: str) -> None:
    given: dict[str, Any] = {"models": Threshold(), "loader": batches(1), "num_classes": 2} | changed
    with pytest.raises(error, match=said):
        measure(given.pop("models"), given.pop("loader"), **given)


class InPlace(Threshold):
    """Changes the images that it is given."""

    def forward(self, images: Tensor) -> dict[str, Any]:
        found = super().forward(images)
        images.sub_(3)
        return found


def test_a_model_or_a_standardisation_that_changes_its_images_in_place_changes_nobody_elses() -> None:
    given, kept = batches(), batches()
    shifts = {"darker": lambda images, severity, generator: images - 0.05 * severity}
    expected = measure({"one": Threshold(), "other": Threshold()}, batches(), num_classes=2, shifts=shifts)
    found = measure({"one": InPlace(), "other": Threshold()}, given, num_classes=2, shifts=shifts)
    assert found.scores == expected.scores
    found = measure(Threshold(0.0), given, num_classes=2, shifts=shifts, then=lambda images: images.sub_(0.5))
    assert [found.cell("model", "darker", at).dice for at in (1, 5)] == [
        expected.cell("one", "darker", at).dice for at in (1, 5)
    ]
    assert all(torch.equal(one[0], other[0]) for one, other in zip(given, kept, strict=True))


def test_images_keep_their_precision_where_some_weight_has_it() -> None:
    model = nn.Sequential(nn.Identity(), nn.Conv2d(1, 2, 1))
    model[0].table = nn.Parameter(torch.ones(1, dtype=torch.float16), requires_grad=False)
    assert measure(model, batches(), num_classes=2, severities=[1]).cells
    assert measure(nn.Conv2d(1, 2, 1).double(), batches(), num_classes=2, severities=[1]).cells


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["exported", "frozen"])
def test_a_model_without_modes_is_measured_as_it_is(kind: str) -> None:
    network = nn.Conv2d(1, 2, 1).eval()
    images = batches()[0][0]
    made = (
        torch.export.export(network, (images,)).module()
        if kind == "exported"
        else torch.jit.freeze(torch.jit.trace(network, images))
    )
    expected = measure(network, batches(), num_classes=2, severities=[1])
    assert measure(made, batches(), num_classes=2, severities=[1]).scores == expected.scores
