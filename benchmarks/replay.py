"""Time what a tap costs, and what replays save, on networks and images of realistic size."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import synchronize
from benchmarks.report import Options, Report, Table
from latentaug import LatentTap, TargetedChannelMask, latent_saliency, tune_allocator

COLUMNS = (
    "images",
    "layer",
    "forward ms",
    "tapped",
    "tap ms",
    "replay",
    "full replay",
    "saliency",
    "masked",
    "in full",
    "attach s",
)
FORMATS = {"forward ms": "{:.0f}", "tapped": "{:.3f}", "tap ms": "{:.1f}", "attach s": "{:.1f}"}


@dataclass(frozen=True)
class Row:
    """A network, and the images it is timed on."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


def of(library: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    """Build a network of a library once it is wanted."""
    return lambda: getattr(import_module(library), name)(*args, **options)


def smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    return of("segmentation_models_pytorch", name, encoder, encoder_weights=None, classes=4)


def segformer() -> nn.Module:
    transformers = import_module("transformers")
    network: nn.Module = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=4))
    return network


def nnunet() -> nn.Module:
    network: nn.Module = import_module("dynamic_network_architectures.architectures.unet").PlainConvUNet(
        input_channels=1,
        n_stages=6,
        features_per_stage=(32, 64, 128, 256, 512, 512),
        conv_op=nn.Conv2d,
        kernel_sizes=3,
        strides=(1, 2, 2, 2, 2, 2),
        n_conv_per_stage=2,
        num_classes=4,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )
    return network


MONAI = "monai.networks.nets"
UNET = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2}
ROWS = [
    Row("smp Unet resnet34", smp("Unet", "resnet34"), (2, 3, 256, 256)),
    Row("smp UnetPlusPlus resnet18", smp("UnetPlusPlus", "resnet18"), (2, 3, 192, 192)),
    Row("smp FPN resnet50", smp("FPN", "resnet50"), (2, 3, 256, 256)),
    Row("smp DeepLabV3Plus resnet50", smp("DeepLabV3Plus", "resnet50"), (2, 3, 192, 192)),
    Row("smp Segformer mit_b2", smp("Segformer", "mit_b2"), (2, 3, 192, 192)),
    Row("MONAI BasicUNet 2-D", of(MONAI, "BasicUNet", 2, 1, 4), (4, 1, 192, 192)),
    Row("MONAI UNet 2-D", of(MONAI, "UNet", 2, 1, 4, **UNET), (4, 1, 256, 256)),
    Row("MONAI UNet 3-D", of(MONAI, "UNet", 3, 1, 4, **UNET), (1, 1, 64, 64, 64)),
    Row("transformers SegFormer b0", segformer, (2, 3, 256, 256)),
    Row("nnU-Net PlainConvUNet 2-D", nnunet, (2, 1, 192, 192)),
    Row(
        "torchvision DeepLabV3 mobilenet_v3_large",
        of(
            "torchvision.models.segmentation",
            "deeplabv3_mobilenet_v3_large",
            weights=None,
            weights_backbone=None,
            num_classes=4,
        ),
        (2, 3, 256, 256),
    ),
]


def run(options: Options) -> Report:
    """Measure every row, one after the other, in this process."""
    torch.set_num_threads(options.threads)
    if options.device == "cpu":
        tune_allocator(2**30)  # fresh pages cost more, and more unevenly, than all that is compared here
    rows = {row.name: measure(row, options) for row in (ROWS[-1:] if options.quick else ROWS)}
    return Report([Table("network", COLUMNS, rows, FORMATS)], drawn="replay", notes=NOTES)


NOTES = (
    "Ratios, in train mode and float32. *Tapped*: a forward pass with entering and leaving the tap, over a plain one. "
    "*Tap ms*: how much more of the time that is, Python's for the most part, whatever the size of the images. "
    "*Replay*, *full replay*: from a masked code, over a plain forward pass. *Saliency*: a training step that also "
    "derives its loss by the code, over a plain step; *masked*, *in full*: that with the backward pass of a masked "
    "replay added. *Attach*: the first pass, in which the tap finds the layer, if it has to, and proves its replays. "
    "Each repetition runs every measurement once, and the least time counts: of the CPU, or on the clock on a GPU.",
)


# Measuring --------------------------------------------------------------------------------------------------------


def measure(row: Row, options: Options) -> tuple[Any, ...]:
    """Return the columns of a row."""
    torch.manual_seed(0)
    device = torch.device(options.device)
    model, images = row.build().to(device).train(), torch.rand(row.shape).to(device)
    for _ in range(2):
        objective(model(images)).backward()
    first = copy.deepcopy(model)  # which no tap has seen
    runs = measurements(model, images)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    least = {name: min(times) for name, times in seconds.items()}
    attach = timed(lambda: tapped(first, images), device)
    return (
        "x".join(map(str, row.shape)),
        f"`{layer_of(model, images)}`",
        least["plain"] * 1e3,
        least["tapped"] / least["plain"],
        (least["tapped"] - least["plain"]) * 1e3,
        *(least[name] / least["plain"] for name in ("replay", "full replay")),
        *(least[name] / least["step"] for name in ("saliency", "masked", "in full")),
        attach,
    )


def measurements(model: nn.Module, images: Tensor) -> dict[str, Callable[[], float]]:
    """Return what is measured, by name: each runs once and returns its seconds."""
    masker = TargetedChannelMask(0.5, 0.5, score="magnitude")
    device = images.device

    def replay(full: bool) -> float:
        with LatentTap(model) as tap:
            model(images)
            return timed(lambda: tap.replay(tap.code * 0.5, full=full), device)

    def step(replays: bool = False, full: bool = False) -> None:
        with LatentTap(model) as tap:
            loss = objective(model(images))
            saliency = latent_saliency(loss, tap.code)
            if replays:
                mask = masker(tap.code, saliency, layout=tap.layout)
                loss = loss + objective(tap.replay(mask.apply(tap.code), full=full))
            loss.backward()

    return {
        "plain": lambda: timed(lambda: model(images), device),
        "tapped": lambda: timed(lambda: tapped(model, images), device),
        "replay": lambda: replay(full=False),
        "full replay": lambda: replay(full=True),
        "step": lambda: timed(lambda: objective(model(images)).backward(), device),
        "saliency": lambda: timed(step, device),
        "masked": lambda: timed(lambda: step(replays=True), device),
        "in full": lambda: timed(lambda: step(replays=True, full=True), device),
    }


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Return the CPU time of a run, or the time on the clock where another device works."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = clock()
    run()
    synchronize(device)
    return clock() - start


def tapped(model: nn.Module, images: Tensor) -> None:
    with LatentTap(model):
        model(images)


def layer_of(model: nn.Module, images: Tensor) -> Any:
    with LatentTap(model) as tap:
        model(images)
        return tap.layers[0]


def objective(output: Any) -> Tensor:
    """Return a loss over the logits: the output itself, the first of a list or what it calls by a name."""
    if isinstance(output, dict):
        output = output["out"] if "out" in output else output["logits"]
    logits: Tensor = output[0] if isinstance(output, list) else output
    labels = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.long, device=logits.device)
    return nn.functional.cross_entropy(logits, labels)
