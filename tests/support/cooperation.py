"""Cooperative models of every kind, batches for them, and what is looked at while they learn."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug.augment.masks import LatentMask, Masker
from latentaug.cooperative import eager_losses
from latentaug.cooperative.build import new_reconstruction_head
from latentaug.cooperative.hard_examples import HardExamples
from latentaug.cooperative.model import CooperativeModel
from latentaug.cooperative.step import cooperative_backward
from latentaug.layout import CHANNELS_FIRST, Layout
from latentaug.nets.ftn import FTN
from latentaug.nets.heads import ShapePrior
from tests.models.segmenters import SkipNet, Tokens
from tests.support.codes import seeded
from tests.support.tiny_training import Wrapper

STANDARD = ["segmentation", "reconstruction", "shape_from_logits", "shape_from_labels"]
HARD = ["hard_image_segmentation", "hard_image_reconstruction", "shape_from_hard_image", "shape_from_hard_segmentation"]

QUIET = HardExamples(noise=0)
SHORTCUTS = HardExamples(saliency_every=2, fraction=0.6, scale=0.5)

small_ftn = functools.partial(FTN, num_classes=3, width=2, depth=2)

CASES: dict[str, dict[str, Any]] = {
    "unet": {},
    "ftn": {"build": small_ftn},
    "several layers": {"codes": ["down", "bottleneck"]},
    "two codes": {"codes": {"image": "down", "shape": "bottleneck"}},
    "3-D": {"size": (6, 8, 8)},
    "binary": {"num_classes": 1},
    "separate": {"hard": HardExamples(separate=True)},
    "weightless": {"weights": {"reconstruction": 0, "shape_from_logits": 0}},
    "unbounded": {"image_range": None},
    "tokens": {"build": Tokens, "num_classes": 2, "codes": "block", "size": (16, 16)},
    "shortcuts": {"hard": SHORTCUTS},
    "shortcuts, 3-D": {"hard": SHORTCUTS, "size": (8, 8, 16)},
}

Wrap = Callable[[nn.Module], nn.Module]
WAYS: dict[str, Wrap] = {"branch by branch": nn.Identity(), "stage by stage": Wrapper}
"""How a step is backpropagated in parts, by what is done to the model."""


def batch(
    num_classes: int = 3, size: tuple[int, ...] = (16, 20), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return three images in 0..1 and their labels, the same every time."""
    generator = seeded(7)
    images = torch.rand(3, 1, *size, generator=generator).to(dtype)
    return images, torch.randint(max(num_classes, 2), (3, *size), generator=generator)


def small_prior(num_classes: int = 3, spatial_dims: int = 2, dtype: torch.dtype = torch.float32) -> ShapePrior:
    return ShapePrior(num_classes, width=2, depth=2, spatial_dims=spatial_dims).to(dtype)


def cooperative(
    build: Callable[[], nn.Module] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    num_classes: int = 3,
    size: tuple[int, ...] = (16, 20),
    dropout: float = 0.1,
    **options: Any,
) -> CooperativeModel:
    """Build a cooperative model, of a `SkipNet` unless told otherwise; the same weights every time."""
    torch.manual_seed(0)
    skip_net = functools.partial(SkipNet, num_classes=num_classes, spatial_dims=len(size), dropout=dropout)
    model = (skip_net if build is None else build)().to(dtype)
    images, _ = batch(num_classes, size, dtype)
    options.setdefault("shape_prior", small_prior(num_classes, len(size), dtype))
    options.setdefault("reconstruction", True)
    hard = options.setdefault("hard", HardExamples())
    if isinstance(hard, HardExamples):
        options["hard"] = as_in_the_paper(hard)
    coop = CooperativeModel(model, num_classes=num_classes, example=images, **options)
    if coop.reconstruction_head is not None and options["reconstruction"] is True and coop.image_code is not None:
        head = new_reconstruction_head(coop.image_code, images, coop.image_range, scale=1.0)
        coop.reconstruction_head = head.to(dtype)
    return coop


def as_in_the_paper(hard: HardExamples) -> HardExamples:
    """Say what depends on the model otherwise: noise, and heads that the model learns from."""
    paper = {"noise": 0.05, "separate": False, "separate_decoder": False, "every": 1}
    return dataclasses.replace(hard, **{name: value for name, value in paper.items() if getattr(hard, name) is None})


def case(
    name: str, dtype: torch.dtype = torch.float64, *, dropout: float = 0.1
) -> tuple[CooperativeModel, Tensor, Tensor]:
    """Build one of the cases, with the batch it takes."""
    options = CASES[name]
    coop = cooperative(dtype=dtype, dropout=dropout, **options)
    return coop, *batch(options.get("num_classes", 3), options.get("size", (16, 20)), dtype)


def gradients_of(coop: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in coop.named_parameters()}


def assert_same_gradients(ours: nn.Module, expected: nn.Module) -> None:
    """See that every parameter has a gradient, and the expected one to ten digits."""
    found = gradients_of(ours)
    for name, gradient in gradients_of(expected).items():
        assert gradient is not None, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-14, msg=f"{name}: gradients differ")


def assert_parts_fill_the_same_gradients(coop: CooperativeModel, wrap: Wrap) -> None:
    """See that a step in parts gives the gradients of one backward pass through the whole step."""
    images, labels = batch(dtype=torch.float64)
    other = copy.deepcopy(coop)
    torch.manual_seed(1)
    coop(images, labels, generator=seeded()).loss.backward()
    torch.manual_seed(1)
    cooperative_backward(wrap(other), images, labels, generator=seeded())
    assert_same_gradients(other, coop)


def code_at(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Return what a layer returns on the way of the images, by a plain hook."""
    codes: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, code: codes.append(code))
    model(images)
    handle.remove()
    (code,) = codes
    return code


def scaled_at(model: nn.Module, factors: dict[str, Tensor], images: Tensor) -> Any:
    """Return what a model makes of images where what some layers return is multiplied, by plain hooks."""
    handles = [
        model.get_submodule(layer).register_forward_hook(lambda module, inputs, code, by=factor: code * by)
        for layer, factor in factors.items()
    ]
    output = model(images)
    for handle in handles:
        handle.remove()
    return output


@dataclass
class Call:
    """What a masker was given, and what it made of it."""

    code: Tensor
    layout: Layout
    factor: Tensor


class Spy(Masker):
    """A masker that remembers what it was given and what it made."""

    def __init__(self, masker: Masker) -> None:
        super().__init__()
        self.masker = masker
        self.calls: list[Call] = []

    def forward(self, code: Tensor, *args: Any, layout: Layout = CHANNELS_FIRST, **options: Any) -> LatentMask:
        mask = self.masker(code, *args, layout=layout, **options)
        self.calls.append(Call(code, layout, mask.factor))
        return mask


def count_saliencies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of codes whenever a loss is differentiated by some."""
    counted: list[int] = []
    original: Any = eager_losses.latent_saliency

    def counting(loss: Tensor, codes: list[Tensor]) -> list[Tensor]:
        counted.append(len(codes))
        return original(loss, codes)

    monkeypatch.setattr(eager_losses, "latent_saliency", counting)
    return counted
