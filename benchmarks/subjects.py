"""What is measured: steps of training, each built in the process that times it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import Step
from latentaug import (
    FTN,
    CooperativeModel,
    Masker,
    RandomChannelMask,
    ShapePrior,
    TargetedChannelMask,
    TargetedSpatialMask,
    cooperative_backward,
    standard_backward,
)
from latentaug.nets.blocks import DownBlock, UpBlock

CLASSES = 4
HEADS: dict[str, Any] = {"reconstruction": True, "shape_prior": True}
"""Arguments of `CooperativeModel` that put both heads beside any network."""
BACKWARD = {"standard": standard_backward, "cooperative": cooperative_backward}
MASKERS: dict[str, type[Masker]] = {
    "random channels": RandomChannelMask,
    "targeted channels": TargetedChannelMask,
    "targeted sites": TargetedSpatialMask,
}


class Size(TypedDict):
    """How many images a step takes, and their side."""

    images: int
    side: int


def batch(device: torch.device, images: int, size: tuple[int, ...], channels: int = 1) -> tuple[Tensor, Tensor]:
    """Draw blocks of classes, and images of them: what a step costs hardly depends on it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (images, *(-(-side // 8) for side in size)), generator=generator)
    for axis, side in enumerate(size, start=1):
        labels = labels.repeat_interleave(8, axis).narrow(axis, 0, side)
    noise = torch.rand(images, channels, *size, generator=generator)
    return ((labels.unsqueeze(1) + noise) / CLASSES).to(device), labels.contiguous().to(device)


def bare(device: torch.device, *, images: int, side: int, recorded: bool = False) -> Step:
    """Train the paper's segmentation network in plain PyTorch: a cross entropy and Adam, nothing of this library's."""
    network = FTN(num_classes=CLASSES)
    del network.image_decoder
    return _plain(device, network, *batch(device, images, (side, side)), recorded=recorded)


def trained(
    device: torch.device,
    *,
    kind: str,
    images: int,
    side: int,
    channels_last: bool = True,
    masker: str | None = None,
    precision: torch.dtype | None = None,
    compiled: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Step:
    """Train the paper's network and shape prior by a standard or a cooperative step, as the cardiac example does.

    `compiled` is a mode that `torch.compile` compiles the networks in, `options` are those of `CooperativeModel`.
    """
    masks = None if masker is None else MASKERS[masker]()
    prior = ShapePrior(CLASSES).to(device)  # the paper's, for images of any size: one network in all tables
    model, inputs, labels = cooperative_model(
        device, FTN(num_classes=CLASSES), images, (side, side), augment=masks, shape_prior=prior, **(options or {})
    )
    if channels_last:
        model.to(memory_format=torch.channels_last)
    if compiled is not None:
        compile_parts(model, mode=compiled)
    return training_step(model, inputs, labels, kind, precision)


def compile_parts(model: CooperativeModel, **options: Any) -> None:
    """Compile the networks one by one; which of them run, and from which codes, is settled outside of them."""
    prior = () if model.shape_prior is None else (model.shape_prior.encoder, model.shape_prior.decoder)
    for part in (*model.model.children(), *prior):
        part.compile(**options)


def trained_volume(device: torch.device, *, kind: str, side: int, checkpointed: bool = False) -> Step:
    """Train MONAI's 3-D U-Net on one cubic patch."""
    return training_step(*volume_model(device, side=side, checkpointed=checkpointed), kind)


def volume_model(device: torch.device, *, side: int, checkpointed: bool) -> tuple[CooperativeModel, Tensor, Tensor]:
    """Put the two heads beside MONAI's 3-D U-Net; return the model with a cubic patch for it."""
    nets = import_module("monai.networks.nets")
    unet = nets.UNet(3, 1, CLASSES, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2)
    model, inputs, labels = cooperative_model(device, unet, 1, (side, side, side), **HEADS)
    if checkpointed:
        model.checkpointed = (*_levels("model.model", 4), *_head_blocks(model))
    return model, inputs, labels


def _levels(prefix: str, depth: int) -> list[str]:
    """Name what goes down and what goes up at each level of MONAI's U-Net, whose levels lie one in another."""
    inner = [] if depth == 1 else _levels(f"{prefix}.1.submodule", depth - 1)
    return [f"{prefix}.0", f"{prefix}.2", *inner]


def _head_blocks(model: CooperativeModel) -> list[str]:
    blocks = [name for name, module in model.named_modules() if isinstance(module, DownBlock | UpBlock)]
    return ["shape_prior.encoder.stem", *blocks]


def matmul(device: torch.device, *, side: int, precision: torch.dtype) -> Step:
    """Multiply two square matrices: as near to the peak of a device as a program gets."""
    if device.type == "cuda":  # convolutions may use TF32 there
        torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
    left, right = (torch.randn(side, side, device=device).to(precision) for _ in range(2))
    return lambda: left @ right


def authors(device: torch.device, *, path: str, kind: str, images: int, side: int) -> Step:
    """Train as the authors' script does, by the code in a checkout of theirs."""
    sys.path.insert(0, path)
    module = import_module("medseg.models.advanced_triplet_recon_segmentation_model")
    cuda = device.type == "cuda"
    solver = module.AdvancedTripletReconSegmentationModel(
        network_type="FCN_16_standard", image_ch=1, num_classes=CLASSES, use_gpu=cuda
    )
    solver.train()
    inputs, labels = batch(device, images, (side, side))

    def step() -> None:
        gc.collect()
        solver.reset_all_optimizers()
        noisy = inputs + 0.05 * torch.randn_like(inputs)
        losses = [*solver.standard_training(inputs, labels, perturbed_image=noisy, separate_training=False)]
        if kind == "cooperative":
            solver.reset_all_optimizers()
            hard_images, hard_segmentation = solver.hard_example_generation(inputs.clone(), labels.clone())
            losses += solver.hard_example_training(
                perturbed_image=hard_images,
                perturbed_seg=hard_segmentation,
                clean_image_l=inputs,
                label_l=labels,
                separate_training=False,
                use_gpu=cuda,
            )
        solver.reset_all_optimizers()
        sum(losses).backward()
        solver.optimize_all_params()

    return step


def cooperative_model(
    device: torch.device, network: nn.Module, images: int, size: tuple[int, ...], **options: Any
) -> tuple[CooperativeModel, Tensor, Tensor]:
    """Put the two heads beside a network; return the model with a batch for it."""
    inputs, labels = batch(device, images, size)
    model = CooperativeModel(network.to(device), num_classes=CLASSES, example=inputs[:2], **options)
    return model, inputs, labels


def _plain(device: torch.device, network: nn.Module, inputs: Tensor, labels: Tensor, *, recorded: bool = False) -> Step:
    network.to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, capturable=recorded)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return _recorded(step) if recorded else step


def _recorded(step: Step) -> Step:
    """Record the kernels of a step as a CUDA graph, and return what launches them all at once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # where PyTorch wants the warm-up before a recording
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def training_step(
    model: nn.Module, inputs: Tensor, labels: Tensor, kind: str, precision: torch.dtype | None = None
) -> Step:
    """Train a `CooperativeModel`, or a wrapper of one, by a standard or a cooperative step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(inputs.device.type, precision, enabled=precision is not None):
            BACKWARD[kind](model, inputs, labels, generator=generator)
        optimizer.step()

    return step
