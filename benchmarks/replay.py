"""Time what a tap costs, and what replays save, on networks and images of realistic size.

Models are in train mode and float32, on one thread. Each repetition runs every measurement once, and of the
repetitions the least CPU time counts: other programs on the machine can only add to it. malloc keeps large blocks, as
in a run of `CooperativeTrainer`. All columns are ratios:

- tapped: a forward pass with entering and leaving the tap, over a plain one;
- replay, full replay: from a masked code, over a plain forward pass;
- saliency: a training step that also derives its loss by the code, over a plain step;
- masked, masked in full: that with the backward pass of a masked replay added, over a plain step;
- attach: the first pass of a model, in plain forward passes.

Usage: python benchmarks/replay.py [--rows TEXT ...] [--repeats N] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import subprocess
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentaug import LatentTap, TargetedChannelMask, latent_saliency, tune_allocator

COLUMNS = ("tapped", "replay", "full replay", "saliency", "masked", "masked in full")
GOAL_COLUMNS = ("replay", "saliency", "masked", "masked in full")
PACKAGES = (
    "torch",
    "segmentation-models-pytorch",
    "timm",
    "torchvision",
    "monai",
    "transformers",
    "dynamic-network-architectures",
)


@dataclass(frozen=True)
class Row:
    """A network, the images it is timed on, and the ratios to beat, in the order of GOAL_COLUMNS."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    goals: tuple[float, ...] | None = None


def of(library: str, name: str, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    """Build a network of a library once it is wanted."""
    return lambda: getattr(import_module(library), name)(*args, **options)


def smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    return of("segmentation_models_pytorch", name, encoder, encoder_weights=None, classes=4)


def segformer() -> nn.Module:
    transformers = import_module("transformers")
    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=4))


def nnunet() -> nn.Module:
    return import_module("dynamic_network_architectures.architectures.unet").PlainConvUNet(
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


MONAI = "monai.networks.nets"
UNET = {"channels": (16, 32, 64, 128, 256), "strides": (2, 2, 2, 2), "num_res_units": 2}
ROWS = [
    Row("smp Unet resnet34", smp("Unet", "resnet34"), (2, 3, 256, 256), (0.42, 1.12, 1.51, 2.00)),
    Row("smp UnetPlusPlus resnet18", smp("UnetPlusPlus", "resnet18"), (2, 3, 192, 192), (0.65, 1.08, 1.87, 2.04)),
    Row("smp FPN resnet50", smp("FPN", "resnet50"), (2, 3, 256, 256), (0.31, 1.08, 1.36, 2.01)),
    Row("smp DeepLabV3Plus resnet50", smp("DeepLabV3Plus", "resnet50"), (2, 3, 192, 192), (0.22, 1.07, 1.30, 1.68)),
    Row("smp Segformer mit_b2", smp("Segformer", "mit_b2"), (2, 3, 192, 192), (0.18, 1.08, 1.33, 2.03)),
    Row("MONAI BasicUNet 2-D", of(MONAI, "BasicUNet", 2, 1, 4), (1, 1, 192, 192), (0.55, 1.24, 1.82, 2.13)),
    Row("MONAI UNet 2-D", of(MONAI, "UNet", 2, 1, 4, **UNET), (1, 1, 256, 256), (0.46, 1.24, 1.71, 2.09)),
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", default=[""], metavar="TEXT", help="only rows with one of these in the name"
    )
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write a JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tune_allocator()  # fresh pages cost more, and more unevenly, than all that is compared here
    warnings.simplefilter("ignore")
    print(head())
    results = []
    for row in ROWS:
        if any(text.lower() in row.name.lower() for text in options.rows):
            results.append(measure(row, options.repeats))
            print(line(results[-1]), flush=True)
    if options.output:
        report = {**environment(), "repeats": options.repeats, "rows": results}
        options.output.write_text(json.dumps(report, indent=2) + "\n")


# Measuring --------------------------------------------------------------------------------------------------------


def measure(row: Row, repeats: int) -> dict[str, Any]:
    """Return the least seconds and the ratios of a row."""
    torch.manual_seed(0)
    model, images = row.build().train(), torch.rand(row.shape)
    for _ in range(2):
        objective(model(images)).backward()
    first = copy.deepcopy(model)  # which no tap has seen
    runs = measurements(model, images)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    seconds["attach"] = []
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(run())
    seconds["attach"].append(timed(lambda: tapped(first, images)))
    least = {name: min(times) for name, times in seconds.items()}
    return {
        "name": row.name,
        "shape": list(row.shape),
        "layer": str(layer_of(model, images)),
        "seconds": least,
        "ratios": {
            **{name: least[name] / least["plain"] for name in ("tapped", "replay", "full replay", "attach")},
            **{name: least[name] / least["step"] for name in ("saliency", "masked", "masked in full")},
        },
        "goals": row.goals and dict(zip(GOAL_COLUMNS, row.goals, strict=True)),
    }


def measurements(model: nn.Module, images: Tensor) -> dict[str, Callable[[], float]]:
    """Return what is measured, by name: each runs once and returns its seconds."""
    masker = TargetedChannelMask(0.5, 0.5, score="magnitude")

    def replay(full: bool) -> float:
        with LatentTap(model) as tap:
            model(images)
            return timed(lambda: tap.replay(tap.code * 0.5, full=full))

    def step(replays: bool = False, full: bool = False) -> None:
        with LatentTap(model) as tap:
            loss = objective(model(images))
            saliency = latent_saliency(loss, tap.code)
            if replays:
                mask = masker(tap.code, saliency, layout=tap.layout)
                loss = loss + objective(tap.replay(mask.apply(tap.code), full=full))
            loss.backward()

    return {
        "plain": lambda: timed(lambda: model(images)),
        "tapped": lambda: timed(lambda: tapped(model, images)),
        "replay": lambda: replay(full=False),
        "full replay": lambda: replay(full=True),
        "step": lambda: timed(lambda: objective(model(images)).backward()),
        "saliency": lambda: timed(step),
        "masked": lambda: timed(lambda: step(replays=True)),
        "masked in full": lambda: timed(lambda: step(replays=True, full=True)),
    }


def timed(run: Callable[[], Any]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


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
    labels = torch.zeros(len(logits), *logits.shape[2:], dtype=torch.long)
    return nn.functional.cross_entropy(logits, labels)


# Reporting --------------------------------------------------------------------------------------------------------


def head() -> str:
    columns = ["model", "images", "layer", "forward", *COLUMNS, "attach"]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def line(result: dict[str, Any]) -> str:
    ratios, goals = result["ratios"], result["goals"] or {}
    cells = [f"{ratios[name]:.2f}" + (f" (goal {goals[name]:.2f})" if name in goals else "") for name in COLUMNS]
    cells[0] = f"{ratios['tapped']:.3f}"
    size = "x".join(map(str, result["shape"]))
    attach = f"{result['seconds']['attach']:.1f} s = {ratios['attach']:.0f}"
    forward = f"{result['seconds']['plain'] * 1000:.0f} ms"
    layer = f"`{result['layer']}`"
    return f"| {' | '.join([result['name'], size, layer, forward, *cells, attach])} |"


def environment() -> dict[str, Any]:
    """Say when, on what and with which versions this was measured."""
    git = ["git", "-C", str(Path(__file__).parent)]
    changed = subprocess.run([*git, "status", "--porcelain", "--", "../latentaug"], capture_output=True, text=True)
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": date.today().isoformat(),
        "hardware": f"{processor()}, one thread",
        "python": platform.python_version(),
        "commit": commit.stdout.strip() + (" with changes" if changed.stdout else ""),
        "versions": {package: metadata.version(package) for package in PACKAGES},
    }


def processor() -> str:
    """Name the CPU, as precisely as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [text.partition(":")[2].strip() for text in info.read_text().splitlines() if text.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
