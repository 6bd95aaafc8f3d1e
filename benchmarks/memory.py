"""Memory of a training step: what PyTorch's allocator holds at most in each stage, and how often it is asked."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import Step
from benchmarks.report import Options, Report, Table
from benchmarks.subjects import Size, bare, cooperative_model, trained
from latentaug import FTN, CooperativeModel
from latentaug.cooperative.backpropagation import Backpropagation
from latentaug.cooperative.stages import InParts, second_stage

COLUMNS = ("peak GB", "left GB", "allocations", "over bare")
FORMATS = {"peak GB": "{:.3f}", "left GB": "{:.3f}", "allocations": "{:,}"}


def run(options: Options) -> Report:
    """Follow every allocation of whole steps, and of the stages of a cooperative one."""
    device = torch.device(options.device)
    size = Size(images=2, side=32) if options.quick else Size(images=20, side=192)
    steps = {
        "bare": bare(device, **size),
        "standard": trained(device, kind="standard", **size),
        "cooperative": trained(device, kind="cooperative", **size),
        **stages(device, **size),
    }
    followed = {name: follow(step, device) for name, step in steps.items()}
    yardstick = followed["bare"][0]
    rows = {name: (peak / 1e9, left / 1e9, n, peak / yardstick) for name, (peak, left, n) in followed.items()}
    table = Table(f"allocator, batch {size['images']}, {size['side']}²", COLUMNS, rows, FORMATS)
    return Report([table], drawn="peak GB", notes=NOTES)


NOTES = (
    "From `torch.profiler`, over what is held as a step begins: weights, their gradients and moments, and the batch. "
    "*Left* is what still is held as it ends. The stages are those of the cooperative step by themselves; *one "
    "backward* is the same step by `model(images, labels).loss.backward()`. `paper.md` has what processes hold.",
)


def stages(device: torch.device, *, images: int, side: int) -> dict[str, Step]:
    """Return the stages of a cooperative step, each as a step of its own."""
    model, inputs, labels = cooperative_model(device, FTN(num_classes=4), images, (side, side))
    model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(0)

    def run(stage: Any) -> Any:
        return model(inputs, labels, generator=generator, stage=InParts(Backpropagation(), stage))

    made = second_stage(run("first"))
    return {
        "standard stage": partial(run, stage="standard"),
        "standard stage, making hard examples": partial(run, stage="first"),
        "hard stage": partial(run, stage=made),
        "one backward": lambda: model(inputs, labels, generator=generator).loss.backward(),
    }


def kept(model: CooperativeModel, images: Tensor, labels: Tensor) -> dict[str, int]:
    """Return the bytes that the standard losses keep for their backward pass, by the part that computes them.

    Weights don't count, and the inputs of parts that are checkpointed do.
    """
    heads: dict[str, nn.Module | None] = {"image head": model.reconstruction, "shape prior": model.shape_prior}
    parts = {"network": model.model, **{name: head for name, head in heads.items() if head is not None}}
    sizes = dict.fromkeys([*parts, "losses"], 0)
    seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    running = ["losses"]

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        running.append(name)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes[running[-1]] += storage.nbytes()
        return tensor

    with ExitStack() as stack:
        for name, module in parts.items():
            stack.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor))
        model(images, labels, stage="standard")  # the first time under these hooks, the model is looked over as well
        sizes.update(dict.fromkeys(sizes, 0))
        seen.intersection_update(parameter.untyped_storage().data_ptr() for parameter in model.parameters())
        output = model(images, labels, stage="standard")
    del output  # kept until here, so that no storage takes the place of another
    return sizes


def follow(step: Step, device: torch.device) -> tuple[int, int, int]:
    """Return the most bytes that a step allocates at a time, those that it leaves, and the number of allocations."""
    step()
    activities = {ProfilerActivity.CPU} | ({ProfilerActivity.CUDA} if device.type == "cuda" else set())
    with profile(activities=activities, profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    found = profiler.profiler.kineto_results.events()
    events = [e for e in found if e.name() == "[memory]" and e.device_type().name == device.type.upper()]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest, held, sum(event.nbytes() > 0 for event in events)
