"""What could be a latent code: the tensors on a coarser grid than the input that a dry run shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentaug.discovery.graph_paths import Ways
from latentaug.discovery.results import predictions_in
from latentaug.layout import Layout
from latentaug.tracing.infer_layout import Shape, grid_of, infer_layout, layouts
from latentaug.tracing.intercept import overridden
from latentaug.tracing.isolation import preserved_modes, sandbox
from latentaug.tracing.location import Location, device_of, first_samples, image_in, resized
from latentaug.tracing.record import Call, ancestors, record
from latentaug.tracing.tree import Path, map_tensors, tensors_in


@dataclass(frozen=True, eq=False)
class Candidate:
    """A tensor on a coarser grid than the input that some call returned, and that the output depends on.

    It is `learned` if the call has weights, and only `pooled` if none of them acted on this grid.
    """

    trace: Call  # of the whole pass, which keeps the calls around this one
    batch: int  # samples of the example, of which the pass may have seen the first only
    ways: Ways  # through the whole pass
    call: Call
    path: Path
    tensor: Tensor
    node: Any
    learned: bool
    pooled: bool
    layout: Layout
    stride: tuple[int, ...]

    @property
    def sites(self) -> float:
        """Share of the input's sites that the code has."""
        return 1 / math.prod(self.stride)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.tensor.shape[self.layout.channel_dim])

    @property
    def location(self) -> Location:
        """Where it is, as a user may pass it."""
        return Location(self.call.name, self.path, self.layout, (self.batch, *self.tensor.shape[1:]), self.stride)


# Looking ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Look:
    """What a dry run showed, and on which inputs."""

    inputs: Any
    trace: Call
    batch: int  # samples of the example, of which these may be the first only
    image: Shape
    ways: Ways
    training: bool
    logits: Callable[[Any], Any] | None


def look_at(model: nn.Module, inputs: Any, logits: Callable[[Any], Any] | None, *, samples: int | None) -> Look:
    """Run the model once with gradients: in eval mode, or in train mode if it then returns labels, not logits.

    Of the inputs, which have an image, it gets the first samples.
    """
    batch, given = _image(inputs)[0], first_samples(inputs, samples)
    image = _image(given)
    for training in (False, True):
        leaves = map_tensors(given, _differentiable)
        trace = _dry_run(model, leaves, training=training)
        ends = [tensor.grad_fn for tensor in results_of(trace.output, logits)]
        if any(end is not None for end in ends):
            break
    starts = [tensor.grad_fn for _, tensor in tensors_in(leaves) if tensor.shape[2:] == image[2:]]
    return Look(given, trace, batch, image, Ways(ends, starts), training, logits)


def _image(inputs: Any) -> Shape:
    image = image_in(inputs)
    assert image is not None
    return tuple(image.shape)


def results_of(output: Any, logits: Callable[[Any], Any] | None) -> list[Tensor]:
    """List the tensors that have to depend on a code."""
    return list(predictions_in(output)) if logits is None else [tensor for _, tensor in tensors_in(logits(output))]


class _Uncut(TorchFunctionMode):
    """Keeps the graph whole where a model cuts it by `no_grad` or `detach`: what follows still depends on the code."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        if func is Tensor.detach:
            return args[0].view_as(args[0])
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)
@torch.enable_grad()
def _differentiable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    return tensor.requires_grad_() * 1 if tensor.is_floating_point() else tensor


def _dry_run(model: nn.Module, inputs: Any, *, training: bool, graph: bool = True) -> Call:
    def run() -> Any:
        args, kwargs = map_tensors(inputs, torch.clone)
        return model(*args, **kwargs)

    with preserved_modes(model), sandbox(model, device_of(model, *inputs)), torch.set_grad_enabled(graph):
        model.train(training)
        if graph:
            try:
                with _Uncut():
                    return record(model, run)[0]
            except Exception:  # such as a model that changes its weights under no_grad; if it fails again, so be it
                pass
        return record(model, run)[0]


class Seen(NamedTuple):
    """Shapes of what was returned in a pass, of what modules were given, and of the image; and the pass's inputs."""

    inputs: Any
    image: Shape
    returned: dict[Any, Shape]
    given: frozenset[Shape]

    def readings(self, *, guess: bool) -> dict[Any, list[tuple[Layout, Shape]]]:
        """Read the layouts that each tensor may have, with the strides; the likeliest first.

        Tokens are known by the grids that were seen elsewhere; others are guessed if asked for.
        """
        seen = {shape: infer_layout(shape, self.image) for shape in {*self.returned.values(), *self.given}}
        grids = {grid_of(shape, fit[0]) for shape, fit in seen.items() if fit and len(shape) == len(self.image)}
        fits = {
            shape: [*layouts(shape, self.image, grids), *(layouts(shape, self.image) if guess else ())]
            for shape in set(self.returned.values())
        }
        return {key: fits[shape] for key, shape in self.returned.items()}


def _seen(inputs: Any, trace: Call, image: Shape) -> Seen:
    returned = {(call.key, path): tuple(t.shape) for call in trace.walk() for path, t in call.tensors}
    return Seen(inputs, image, returned, frozenset(shape for call in trace.walk() for shape in call.given))


def seen_again(model: nn.Module, look: Look) -> Seen | None:
    """Look at one sample of another size: half, or twice as long where that is too small; None if the model refuses."""
    _, channels, *axes = look.image
    seen: Seen | None = None
    for size in ([max(1, s // 2) for s in axes], [*axes[:-1], 2 * axes[-1]]):
        try:
            inputs = resized(first_samples(look.inputs, 1), size)
            trace = _dry_run(model, inputs, training=look.training, graph=False)
        except Exception:  # models of one size refuse any other in their own ways
            continue
        seen = _seen(inputs, trace, (1, channels, *size))
        if not _is_too_small(look.trace, trace, len(size)):
            break
    return seen


def _is_too_small(trace: Call, small: Call, spatial_dims: int) -> bool:
    """Tell whether what comes to a single site in one pass does so too early in another, of smaller images."""

    def sites(shapes: Iterable[Shape]) -> int:
        return max((math.prod(shape[2:]) for shape in shapes if len(shape) == spatial_dims + 2), default=0)

    given = {call.key: sites(call.given) for call in small.walk()}
    return any(
        sites(tuple(tensor.shape) for _, tensor in call.tensors) == 1 < sites(call.given)
        for call in trace.walk()
        if given.get(call.key) == 1
    )


def read_past(model: nn.Module, look: Look, names: Collection[str]) -> set[str]:
    """Name those, of modules that change in place what they are given, past whose returned tensors that is read."""
    modules = {name: model.get_submodule(name) for name in names}
    if not modules:
        return set()

    def copied(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return map_tensors(original(*args, **kwargs), torch.clone)

    with overridden(modules, copied):
        trace = _dry_run(model, map_tensors(look.inputs, _differentiable), training=look.training)
    used = ancestors([tensor.grad_fn for tensor in results_of(trace.output, look.logits)])
    copies = {node: call.name for call in trace.walk() if call.name in modules for node in call.nodes if node}
    changed = {parent: name for node, name in copies.items() for parent, _ in node.next_functions}
    return {changed[parent] for node in used - set(copies) for parent, _ in node.next_functions if parent in changed}


# Listing ----------------------------------------------------------------------------------------------------------
def candidates(
    model: nn.Module, look: Look, again: Seen | None, *, guess: bool, coarser: bool = True
) -> list[Candidate]:
    """List the tensors that a tap could take, on a grid that follows the input's size, and is coarser unless told."""
    latest = {call.name: call for call in look.trace.walk()}  # a tap takes a module's last call
    readings = _seen(look.inputs, look.trace, look.image).readings(guess=guess)
    others = again.readings(guess=guess) if again else {}
    found: list[Candidate] = []
    fixed: list[Candidate] = []
    for call in latest.values():
        if call is look.trace:
            continue
        weighted = [inner for inner in call.walk() if has_weights(model.get_submodule(inner.name))]
        made = [readings[inner.key, place] for inner in weighted for place, _ in inner.tensors]
        entering = finest_input(call, look.image)
        for (path, tensor), node in zip(call.tensors, call.nodes, strict=True):
            key = (call.key, path)
            shape, other = tuple(tensor.shape), again.returned.get(key) if again else None
            fits = readings[key] if other is None else _in_both(readings[key], shape, others[key], other)
            if not fits or math.prod(fits[0][1]) < 1 + coarser or not look.ways.over(node):
                continue
            layout, stride = fits[0]
            sites = 1 / math.prod(stride)
            pooled = entering > sites and all(fit and 1 / math.prod(fit[0][1]) > sites for fit in made)
            candidate = Candidate(
                look.trace, look.batch, look.ways, call, path, tensor, node, bool(weighted), pooled, layout, stride
            )
            (fixed if other is not None and shape[1:] == other[1:] else found).append(candidate)
    # A grid that does not follow the input's size is pooled to fixed bins; all of them: a model that resizes its input.
    return _without_vectors(found or fixed, look, again)


def _without_vectors(found: list[Candidate], look: Look, again: Seen | None) -> list[Candidate]:
    """Drop codes that come to the output as vectors only, such as one that modulates another, unless all does."""
    vectors = {
        node
        for call in look.trace.walk()
        for (path, tensor), node in zip(call.tensors, call.nodes, strict=True)
        if _is_vector(tensor, look.image, again.returned.get((call.key, path)) if again else None)
    }
    mapped = look.ways.leading_past(vectors)
    dropped = {c.node for c in found if c.node not in mapped}
    return [c for c in found if c.node in mapped] if look.ways.lead_past(dropped) else found


def _is_vector(tensor: Tensor, image: Shape, other: Shape | None) -> bool:
    """Tell whether a tensor is [B, C], or has a single site whatever the input's size."""
    if tensor.ndim == 2:
        return tensor.shape[0] == image[0]
    one_site = tensor.ndim == len(image) and math.prod(tensor.shape[2:]) == 1
    return one_site and other is not None and math.prod(other[2:]) == 1


def _in_both(
    fits: list[tuple[Layout, Shape]], shape: Shape, others: list[tuple[Layout, Shape]], other: Shape
) -> list[tuple[Layout, Shape]]:
    """Keep the layouts that fit at both sizes with as many channels: sites follow the input's size, channels do not."""
    seen = {layout for layout, _ in others}
    return [
        (layout, stride)
        for layout, stride in fits
        if layout in seen and shape[layout.channel_dim] == other[layout.channel_dim]
    ]


def finest_input(call: Call, image: Shape) -> float:
    """Return the finest grid among the inputs of a call, as a share of the image's sites."""
    return max(input_grids(call, image), default=1.0)


def input_grids(call: Call, image: Shape) -> list[float]:
    """List the grids of the inputs of a call, as shares of the image's sites."""
    return [1 / math.prod(fit[1]) for shape in call.given if (fit := infer_layout(shape, image))]


def is_within(call: Call | None, ancestor: Call) -> bool:
    """Tell whether a call is another, or was made inside it."""
    while call is not None:
        if call is ancestor:
            return True
        call = call.parent
    return False


def has_weights(module: nn.Module) -> bool:
    """Tell whether a module has weights of its own."""
    return any(weight is not None for weight in module._parameters.values())
