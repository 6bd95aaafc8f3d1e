"""Where the time of a training step goes: forward and backward passes of each part, masks, losses, and the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.measure import Step
from latentaug import CooperativeModel, LatentTap

MARK = "part: "
REST = "rest"
LOSSES = ("cross_entropy", "binary_cross_entropy_with_logits", "mse_loss")


def fractions(model: CooperativeModel, step: Step, repeats: int = 2) -> dict[str, float]:
    """Return which fraction of a step that has run before each part takes: one in all, the largest first.

    *pass* is the network's forward pass, *replay* what is run of it again from changed codes, *saliency* the gradients
    that are derived apart from the backward pass, *rest* all that is in no part: the step's own Python, for the most.
    "X, backward" is what the backward pass takes for what X computed.
    """
    with marked(parts_of(model)), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with record_function(MARK + REST):
                step()
    taken = by_part(profiler.events() or [])
    total = sum(taken.values())
    return {name: seconds / total for name, seconds in taken.most_common()}


def parts_of(model: CooperativeModel) -> dict[str, list[nn.Module]]:
    """Return the modules of a `CooperativeModel` whose calls are told apart, by their part's name."""
    heads: dict[str, nn.Module | None] = {"image head": model.reconstruction, "shape prior": model.shape_prior}
    transforms = {id(one): one for one in (model.image_transform, model.shape_transform)}
    return {
        "pass": [model.model],
        **{name: [head] for name, head in heads.items() if head is not None},
        "masks": [*transforms.values()],
    }


@contextmanager
def marked(parts: Mapping[str, Iterable[nn.Module]]) -> Iterator[None]:
    """Mark in a profile what belongs to which part: calls of its modules, replays, losses and saliencies."""
    with ExitStack() as stack:
        for name, modules in parts.items():
            for module in modules:
                stack.enter_context(_marked_module(name, module))
        stack.enter_context(_replaced(LatentTap, "replay", partial(_within, "replay")))
        stack.enter_context(_replaced(torch.autograd, "grad", partial(_within, "saliency")))
        for function in LOSSES:
            stack.enter_context(_replaced(F, function, partial(_within, "losses")))
        yield


@contextmanager
def _marked_module(name: str, module: nn.Module) -> Iterator[None]:
    open_ones: list[Any] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        open_ones.append(record_function(MARK + name))
        open_ones[-1].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_ones.pop().__exit__(None, None, None)

    hooks = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _replaced(owner: Any, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, change(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _within(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def marked_function(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + name):
            return function(*args, **kwargs)

    return marked_function


# Reading a profile ------------------------------------------------------------------------------------------------

BACKWARD = "autograd::engine::evaluate_function: "


def by_part(events: Iterable[Any]) -> Counter[str]:
    """Return the time of each part: of every event, less that of the events within it.

    A backward operation belongs to the part that computed its forward one: both have one sequence number.
    """
    ordered = sorted(events, key=lambda event: event.time_range.start)
    roots = [event for event in ordered if event.cpu_parent is None]
    owners: dict[int, str] = {}
    taken: Counter[str] = Counter()
    for find_owners in (True, False):
        pending = [(event, REST) for event in reversed(roots)]
        while pending:
            event, part = pending.pop()
            backward = event.name.startswith(BACKWARD)
            if backward and part != "saliency":
                part = f"{owners.get(event.sequence_nr, REST)}, backward"
            elif event.name.startswith(MARK) and part not in ("replay", "saliency"):
                part = event.name.removeprefix(MARK)
            if not find_owners:
                taken[part] += event.self_cpu_time_total
            elif event.sequence_nr >= 0 and part != "saliency" and not part.endswith("backward"):
                owners[event.sequence_nr] = part  # the last one that was to get this number did
            pending += [(child, part) for child in reversed(event.cpu_children)]
    return taken
