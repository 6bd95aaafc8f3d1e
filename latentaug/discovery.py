"""Find the latent codes of a model from one dry run, with no knowledge of its library."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, Layout
from latentaug.modes import preserved_modes
from latentaug.planning import sandbox
from latentaug.replay import Spot, device_of
from latentaug.trace import (
    Call,
    Path,
    ancestors,
    is_compiled,
    item_at,
    map_tensors,
    overridden,
    record,
    storage_of,
    tensors_in,
    visible_modules,
)

_DECODER = re.compile(r"(^|[._])(decod\w*|up\w*|head\w*|aux\w*|classif\w*|seg\w*_head|neck)([._]|\d|$)", re.IGNORECASE)
# Axis of the tokens, and how many lead that are no sites: none, a class token, class and distillation tokens, class and
# four register tokens. Registers without a class, or eight of them, are rarer than channels that come before sites.
_TOKENS = ((1, 0), (1, 1), (1, 2), (1, 5), (2, 0))
_RARE_TOKENS = ((1, 4), (1, 8), (1, 9))
_WRAPPER = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)(?=\.|$)")

Shape: TypeAlias = tuple[int, ...]


class _Location(NamedTuple):
    name: str
    index: Path  # type: ignore[assignment]  # the contract's name hides tuple.index, which nobody needs here
    layout: Layout
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Location(_Location):
    """Where a latent code is, and what it looks like.

    Args:
        name: Dotted name of the submodule that returns the code; "" is the model itself.
        index: Path into what it returns: (), (5,) or ("out",).
        layout: Where the channels are, and how many tokens are no sites.
        shape: Shape of the code, [B, C, *S] or another layout.
        stride: Input pixels per site, one for each spatial axis.

    Example:
        >>> print(Location("encoder", (5,), CHANNELS_FIRST, (2, 512, 2, 2), (32, 32)))
        encoder[5]
    """

    __slots__ = ()

    def __str__(self) -> str:
        return self.name + "".join(f"[{key!r}]" for key in self.index)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of sites along each spatial axis of the image that the code came from."""
        return _grid(self.shape, self.layout)


def _grid(shape: Shape, layout: Layout) -> Shape:
    sites = list(shape)
    del sites[layout.channel_dim], sites[0]
    return tuple(sites)


# Shapes -----------------------------------------------------------------------------------------------------------


def infer_layout(shape: Sequence[int], image: Sequence[int]) -> tuple[Layout, tuple[int, ...]] | None:
    """Read layout and stride of a code off its shape and that of the image [B, C, *S]; None where nothing fits.

    Example:
        >>> layout, stride = infer_layout((2, 2, 3, 192), (2, 3, 64, 96))
        >>> print(layout, stride)
        channels last (32, 32)
        >>> layout, stride = infer_layout((2, 17, 32), (2, 3, 64, 64))
        >>> print(layout, stride)
        tokens, 1 prefix (16, 16)
    """
    return next(_layouts(tuple(shape), tuple(image)), None)


def _layouts(shape: Shape, image: Shape, grids: Collection[Shape] | None = None) -> Iterator[tuple[Layout, Shape]]:
    """Yield the layouts, with strides, that a code may have, the likeliest first.

    Tokens make up one of `grids`, if given; or else any that one stride would leave of the image.
    """
    size = image[2:]
    if len(shape) < 3 or not size or shape[0] != image[0] or 0 in shape:
        return
    if len(shape) == len(size) + 2:
        options = [(CHANNELS_FIRST, shape[2:]), (CHANNELS_LAST, shape[1:-1])]
        # The more alike and the rounder the strides, the likelier; channels first where they tie.
        for layout, grid in sorted(options, key=lambda option: _oddness(size, option[1])):
            if all(g <= s for g, s in zip(grid, size, strict=True)):
                yield layout, _stride(size, grid)
            elif all(g <= 2 * s for g, s in zip(grid, size, strict=True)):
                return  # as fine as the input: no code, however its channels might be counted as sites
    if len(shape) == 3:
        yield from _token_layouts(shape, size, grids)


def _oddness(size: Shape, grid: Shape) -> tuple[float, bool]:
    ratios = [s / g for s, g in zip(size, grid, strict=True)]
    return max(ratios) / min(ratios), not all(_strides(s, g) for s, g in zip(size, grid, strict=True))


def _strides(size: int, sites: int) -> list[int]:
    """List the strides that may turn `size` pixels into so many sites, the likeliest first.

    Each convolution of a strided stack rounds, up or down. One that divides, or else a power of two, is the likeliest.
    """
    near = range(max(1, size // (sites + 1)), size // max(1, sites - 1) + 2)
    fits = [s for s in near if size // s <= sites <= -(-size // s)]
    return sorted(fits, key=lambda s: (s * sites != size, s & (s - 1) != 0, abs(s - size / sites)))


def _stride(size: Shape, grid: Shape) -> tuple[int, ...]:
    """Return the stride of each axis: a divisor, or else one power of two for all, or else the nearest that fits."""
    axes = [_strides(s, g) for s, g in zip(size, grid, strict=True)]
    shared = [stride for stride in axes[0] if stride & (stride - 1) == 0 and all(stride in axis for axis in axes)]
    if shared and any(s % g for s, g in zip(size, grid, strict=True)):
        return (shared[0],) * len(grid)
    return tuple(axis[0] if axis else max(1, round(s / g)) for axis, s, g in zip(axes, size, grid, strict=True))


def _token_layouts(shape: Shape, size: Shape, grids: Collection[Shape] | None) -> Iterator[tuple[Layout, Shape]]:
    if grids is None:
        common, rare = ([(axis, n) for axis, n in ways if shape[axis] > 2 * n] for ways in (_TOKENS, _RARE_TOKENS))
        even = [stride for stride in range(max(size), 0, -1) if not any(s % stride for s in size)]
        yield from _tokens(shape, _strided(size, even), common + rare)
        yield from _tokens(shape, _strided(size, range(max(size), 0, -1)), common)
    else:
        known = {math.prod(grid): _stride(size, grid) for grid in grids if len(grid) == len(size)}
        yield from _tokens(shape, known, _TOKENS + _RARE_TOKENS)


def _strided(size: Shape, strides: Iterable[int]) -> dict[int, Shape]:
    """Tell the stride by the number of sites that it leaves."""
    return {math.prod(-(-s // stride) for s in size): (stride,) * len(size) for stride in strides}


def _tokens(
    shape: Shape, strides: dict[int, Shape], options: Iterable[tuple[int, int]]
) -> Iterator[tuple[Layout, Shape]]:
    for axis, prefix in options:
        if (stride := strides.get(shape[axis] - prefix)) is not None:
            yield (Layout(-1, prefix) if axis == 1 else CHANNELS_FIRST), stride


def image_in(inputs: Any) -> Tensor | None:
    """Return the image among a model's inputs: the first tensor [B, C, *S] of most axes, better one of floats."""
    images = [tensor for _, tensor in tensors_in(inputs) if tensor.ndim >= 3]
    return max(images, key=lambda image: (image.ndim, image.is_floating_point()), default=None)


def as_inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read `example` as the arguments of a call: a tensor is the only one, a tuple holds them, a dict names them."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, dict):
        return (), {str(key): value for key, value in example.items()}
    raise TypeError(
        f"`example` needs a tensor, or a tuple or dict of the model's inputs; got {type(example).__name__}."
    )


# Naming layers ----------------------------------------------------------------------------------------------------


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model that `torch.compile`, DistributedDataParallel or a one-device DataParallel wraps.

    Raises:
        TypeError: The model is scripted or traced, or replicated over several devices.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` needs to be a torch.nn.Module; got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` is compiled by torch.jit ({type(model).__name__}), whose submodules are never called from Python "
            "and so have no code to tap. Pass the original module; scripted submodules are fine."
        )
    if isinstance(model, nn.DataParallel):
        if len(model.device_ids) > 1:
            raise TypeError(
                f"`model` is a DataParallel over {len(model.device_ids)} devices, whose replicas cannot be tapped. "
                "Use DistributedDataParallel, or pass model.module."
            )
        return unwrap(model.module)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    original = getattr(model, "_orig_mod", None)
    return unwrap(original) if is_compiled(model) and isinstance(original, nn.Module) else model


def find_spot(model: nn.Module, layer: str | nn.Module | Location) -> tuple[str, Path | None]:
    """Turn what a user calls a layer into a submodule's name and a path; the path is None where none was given.

    Raises:
        ValueError: There is no such submodule; the error names the closest.
        TypeError: `layer` is something else.
    """
    if isinstance(layer, Location):
        return find_spot(model, layer.name)[0] if layer.name else "", layer.index
    if isinstance(layer, nn.Module):
        found = next((name for name, module in model.named_modules() if module is layer), None)
        if found is None:
            raise ValueError(
                f"LatentTap needs a submodule of {type(model).__name__}; got another {type(layer).__name__}."
            )
        return found, None
    if not isinstance(layer, str):
        raise TypeError(f"`layer` needs a dotted name, a module, a Location or None; got {type(layer).__name__}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    name, path = layer, None
    if name not in modules and (match := re.fullmatch(r"(.*?)((?:\[[^\[\]]+\])+)", layer)):
        name, path = match[1], tuple(_key(text) for text in re.findall(r"\[([^\[\]]+)\]", match[2]))
    if name not in modules:
        bare = {_bare(real): real for real in modules}
        name = bare.get(_bare(name), name)
    if name not in modules:
        close = difflib.get_close_matches(name, list(filter(None, bare)), n=3, cutoff=0.3)
        hint = f"; closest: {', '.join(map(repr, close))}" if close else ""
        raise ValueError(
            f"LatentTap found no submodule {name!r} in {type(model).__name__}{hint}. "
            "Pass one of its names, or the module itself."
        )
    return next(real for real, module in modules.items() if module is modules[name]), path


def _bare(name: str) -> str:
    """Leave out what wrappers put into a name."""
    return _WRAPPER.sub("", name).strip(".")


def _key(text: str) -> Any:
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else text.strip("'\"")


def spot_in(name: str, path: Path | None, output: Any) -> Spot:
    """Complete a layer that was given without an index from what the module returned.

    Raises:
        ValueError: There is no tensor at the path, or several where none was said.
    """
    if path is not None:
        path = tuple(path)
        try:
            found = item_at(output, path)
        except (KeyError, IndexError, AttributeError, TypeError):
            found = None
        if isinstance(found, Tensor):
            return Spot(name, next(p for p, tensor in tensors_in(output) if tensor is found))
    tensors = list(tensors_in(output))
    if path is None and len(tensors) == 1:
        return Spot(name, tensors[0][0])
    options = ", ".join(f"'{name}{''.join(f'[{key!r}]' for key in p)}' {tuple(t.shape)}" for p, t in tensors[:12])
    asked = name + "".join(f"[{key!r}]" for key in path or ())
    raise ValueError(
        f"LatentTap needs one tensor, and {asked!r} is {'not one' if path else 'several'}: {name!r} returns "
        f"{options or 'no tensor'}. Pass one of these."
    )


# Finding ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Candidate:
    """A tensor on a coarser grid than the input that some call returned, and that the output depends on.

    It is `learned` if the call has weights, and only `pooled` if none of them acted on this grid.
    """

    trace: Call  # of the whole pass, which keeps the calls around this one
    ways: _Ways  # through the whole pass
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
        return Location(self.call.name, self.path, self.layout, tuple(self.tensor.shape), self.stride)


def find_bottleneck(model: nn.Module, example: Any, *, logits: Callable[[Any], Any] | None = None) -> Location:
    """Find the deepest latent code of an encoder-decoder by running it once.

    Among the tensors that modules return and that the output depends on, takes the one at the coarsest grid, from the
    outermost module that returns it. Parts that pool to a fixed grid, and smaller detours inside a decoder, do not
    count. Runs in eval mode; weights, buffers, gradients, modes and random state are left as they were.

    Args:
        model: Any segmentation model.
        example: An input batch: a tensor [B, C, *S], or a tuple or dict of the model's inputs. Height and width that
            differ help to tell channels from sites.
        logits: Reads from the model's output what must depend on the code. Default: every tensor in it.

    Raises:
        ValueError: No submodule returns a code that is coarser than the input; the error lists what there is.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1), nn.Upsample(scale_factor=4))
        >>> print(find_bottleneck(model, torch.randn(1, 1, 32, 32)))
        1
    """
    return bottleneck(unwrap(model), *as_inputs(example), logits=logits)


def bottleneck(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, logits: Callable[[Any], Any] | None = None
) -> Location:
    """Do what `find_bottleneck` does, for a model that is not wrapped and arguments that are spelled out."""
    return ranked(model, args, kwargs, logits)[0].location


def complete_spots(
    model: nn.Module,
    targets: Sequence[tuple[str, Path | None]],
    call: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[Spot, tuple[int, ...]]:
    """Look in a dry run at what the target modules return, complete the paths left open, and tell the codes' shapes.

    Raises:
        ValueError: A target returns no tensor at its path, several where none was said, or is not called so often.
        RuntimeError: A target is not called at all.
    """
    with sandbox(model, device_of(model, args, kwargs)):
        args, kwargs = map_tensors((args, kwargs), torch.clone)
        trace, _ = record(model, lambda: model(*args, **kwargs), inside=frozenset(name for name, _ in targets))
    spots: dict[Spot, tuple[int, ...]] = {}
    for name, path in targets:
        calls = [entry for entry in trace.walk() if entry.name == name]
        if not calls:
            raise RuntimeError(
                f"LatentTap: {name!r} is not called in a forward pass of {type(model).__name__}, so it has no code to "
                "tap. Pass a module that is called in every pass, in train mode too."
            )
        if not -len(calls) <= call < len(calls):
            raise ValueError(f"LatentTap needs `call` within the {len(calls)} calls of {name!r}; got {call}.")
        spot = spot_in(name, path, calls[call].output)
        if spot in spots:
            raise ValueError(f"LatentTap needs different layers; got {name!r} twice.")
        spots[spot] = tuple(item_at(calls[call].output, spot.path).shape)
    return spots


def ranked(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Callable[[Any], Any] | None
) -> list[Candidate]:
    """Return the candidates, the bottleneck first."""
    image = image_in((args, kwargs))
    if image is None:
        raise ValueError("find_bottleneck needs an image [B, C, *S] among the model's inputs; found none. Pass layer=.")
    look = _look(model, args, kwargs, image, logits)
    again = _seen_again(model, args, kwargs, image, look.training)
    found = _candidates(model, look, again, guess=again is not None) or _candidates(model, look, again, guess=True)
    best = _best(model, found, look, args, kwargs)
    rest = sorted((c for c in found if c is not best), key=lambda c: (c.sites, -c.channels))
    return [best, *_outermost(rest)]


# Looking ----------------------------------------------------------------------------------------------------------


class _Uncut(TorchFunctionMode):
    """Keeps the graph whole where a model cuts it by `no_grad` or `detach`: what follows still depends on the code."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        if func is Tensor.detach:
            return args[0].view_as(args[0])
        return func(*args, **(kwargs or {}))


class _Ways:
    """Counts the ways through the autograd graph, from the images to the outputs, that lead over a node.

    Where no image has a gradient, all being integers, ways start at the weights.
    """

    def __init__(self, outputs: Iterable[Any], images: Iterable[Any]):
        self._ends = Counter(node for node in outputs if node is not None)
        self._order = _topological(self._ends)
        self._starts = {node for node in images if node in self._order} or {
            node for node in self._order if not _parents(node)
        }
        self._before = self._around(frozenset())
        self._after: Counter[Any] = Counter(self._ends)
        for node in reversed(self._order):
            for parent in _parents(node):
                self._after[parent] += self._after[node]

    def _around(self, closed: Collection[Any]) -> dict[Any, int]:
        """Count the ways from the images to each node that avoid the closed ones."""
        ways: dict[Any, int] = {}
        for node in self._order:
            arriving = (node in self._starts) + sum(ways[parent] for parent in _parents(node))
            ways[node] = 0 if node in closed else arriving
        return ways

    def over(self, node: Any) -> int:
        """Count the ways over a node: none if the outputs do not depend on it, or it not on the images."""
        return self._before.get(node, 0) * self._after[node]

    def over_any(self, nodes: Collection[Any]) -> int:
        """Count the ways over at least one of the nodes."""
        around = self._around(nodes)
        return sum(times * (self._before[end] - around[end]) for end, times in self._ends.items())

    def all_over(self, node: Any, end: Any) -> bool:
        """Tell whether all ways from the images to `end` lead over `node`."""
        return not self._around({node})[end]

    def lead_past(self, nodes: Collection[Any]) -> bool:
        """Tell whether some way leads over none of the nodes."""
        around = self._around(nodes)
        return any(around[end] for end in self._ends)

    def leading_past(self, nodes: Collection[Any]) -> set[Any]:
        """Collect what has a way to the outputs that leads over none of the nodes."""
        leading = set(self._ends) - set(nodes)
        for node in reversed(self._order):
            if node in leading:
                leading.update(parent for parent in _parents(node) if parent not in nodes)
        return leading

    def shuffles(self, node: Any) -> bool:
        """Tell whether all that reads a node makes pixels of its channels."""
        readers = [reader for reader in self._order if node in _parents(reader)]
        return bool(readers) and all("PixelShuffle" in type(reader).__name__ for reader in readers)

    def after(self, node: Any) -> set[Any]:
        """Collect what follows from a node."""
        following = {node}
        following.update(other for other in self._order if any(parent in following for parent in _parents(other)))
        return following - {node}


def _parents(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _topological(ends: Iterable[Any]) -> dict[Any, None]:
    """Order nodes such that each comes after those that it depends on."""
    order: dict[Any, None] = {}
    stack = [(end, False) for end in ends]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order[node] = None
        elif node not in order:
            stack.append((node, True))
            stack.extend((parent, False) for parent in _parents(node) if parent not in order)
    return order


@dataclass(frozen=True)
class _Look:
    """What a dry run showed."""

    trace: Call
    image: Shape
    ways: _Ways
    training: bool
    logits: Callable[[Any], Any] | None


def _look(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor, logits: Callable[[Any], Any] | None
) -> _Look:
    """Run the model once with gradients: in eval mode, or in train mode if it then returns labels, not logits."""
    for training in (False, True):
        inputs = map_tensors((args, kwargs), _differentiable)
        trace = _dry_run(model, *inputs, training=training)
        ends = [tensor.grad_fn for tensor in _results(trace.output, logits)]
        if any(end is not None for end in ends):
            break
    starts = [tensor.grad_fn for _, tensor in tensors_in(inputs) if tensor.shape[2:] == image.shape[2:]]
    return _Look(trace, tuple(image.shape), _Ways(ends, starts), training, logits)


def _results(output: Any, logits: Callable[[Any], Any] | None) -> list[Tensor]:
    return [tensor for _, tensor in tensors_in(output if logits is None else logits(output))]


@torch.inference_mode(False)
@torch.enable_grad()
def _differentiable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    return tensor.requires_grad_() * 1 if tensor.is_floating_point() else tensor


def _dry_run(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool, graph: bool = True
) -> Call:
    def run() -> Any:
        own_args, own_kwargs = map_tensors((args, kwargs), torch.clone)
        return model(*own_args, **own_kwargs)

    with preserved_modes(model), sandbox(model, device_of(model, args, kwargs)), torch.set_grad_enabled(graph):
        model.train(training)
        if graph:
            try:
                with _Uncut():
                    return record(model, run)[0]
            except Exception:  # such as a model that changes its weights under no_grad; if it fails again, so be it
                pass
        return record(model, run)[0]


class _Seen(NamedTuple):
    """Shapes of what was returned in a pass, of what modules were given, and of the image."""

    image: Shape
    returned: dict[Any, Shape]
    given: frozenset[Shape]

    def readings(self, *, guess: bool) -> dict[Any, list[tuple[Layout, Shape]]]:
        """Read the layouts that each tensor may have, with the strides; the likeliest first.

        Tokens are known by the grids that were seen elsewhere; others are guessed if asked for.
        """
        seen = {shape: infer_layout(shape, self.image) for shape in {*self.returned.values(), *self.given}}
        grids = {_grid(shape, fit[0]) for shape, fit in seen.items() if fit and len(shape) == len(self.image)}
        fits = {
            shape: [*_layouts(shape, self.image, grids), *(_layouts(shape, self.image) if guess else ())]
            for shape in set(self.returned.values())
        }
        return {key: fits[shape] for key, shape in self.returned.items()}


def _seen(trace: Call, image: Shape) -> _Seen:
    returned = {(call.key, path): tuple(t.shape) for call in trace.walk() for path, t in call.tensors}
    return _Seen(image, returned, frozenset(shape for call in trace.walk() for shape in call.given))


def _seen_again(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor, training: bool
) -> _Seen | None:
    """Look at one sample of another size: half, or twice as long where that is too small; None if the model refuses."""
    *axes, last = image.shape[2:]
    for size in ([max(1, s // 2) for s in image.shape[2:]], [*axes, 2 * last]):

        def resize(tensor: Tensor, size: list[int] = size) -> Tensor:
            if tensor.shape[2:] != image.shape[2:]:
                return tensor[:1] if tensor.ndim and tensor.shape[0] == image.shape[0] else tensor
            return nn.functional.interpolate(tensor[:1].float(), size=size).to(tensor.dtype)

        try:
            trace = _dry_run(model, *map_tensors((args, kwargs), resize), training=training, graph=False)
        except Exception:  # models of one size refuse any other in their own ways
            continue
        return _seen(trace, (1, image.shape[1], *size))
    return None


def _candidates(model: nn.Module, look: _Look, again: _Seen | None, *, guess: bool) -> list[Candidate]:
    """List the tensors that a tap could take, on a grid that is coarser than the input's and follows its size."""
    latest = {call.name: call for call in look.trace.walk()}  # a tap takes a module's last call
    readings = _seen(look.trace, look.image).readings(guess=guess)
    others = again.readings(guess=guess) if again else {}
    found: list[Candidate] = []
    fixed: list[Candidate] = []
    for call in latest.values():
        if call is look.trace:
            continue
        weighted = [inner for inner in call.walk() if _has_weights(model.get_submodule(inner.name))]
        made = [readings[inner.key, place] for inner in weighted for place, _ in inner.tensors]
        entry = _entry(call, look.image)
        for (path, tensor), node in zip(call.tensors, call.nodes, strict=True):
            key = (call.key, path)
            shape, other = tuple(tensor.shape), again.returned.get(key) if again else None
            fits = readings[key] if other is None else _in_both(readings[key], shape, others[key], other)
            if not fits or math.prod(fits[0][1]) < 2 or not look.ways.over(node):
                continue
            layout, stride = fits[0]
            sites = 1 / math.prod(stride)
            pooled = entry > sites and all(fit and 1 / math.prod(fit[0][1]) > sites for fit in made)
            candidate = Candidate(
                look.trace, look.ways, call, path, tensor, node, bool(weighted), pooled, layout, stride
            )
            (fixed if other is not None and shape[1:] == other[1:] else found).append(candidate)
    # A grid that does not follow the input's size is pooled to fixed bins; all of them: a model that resizes its input.
    return _without_vectors(found or fixed, look, again)


def _without_vectors(found: list[Candidate], look: _Look, again: _Seen | None) -> list[Candidate]:
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


def _passed_through(call: Call, tensor: Tensor, ways: _Ways) -> bool:
    """Tell whether a call returns what a call inside it made and others inside it used: too late to replace it."""
    inside = [inner for inner in call.walk() if inner is not call]
    made = max((inner.finish for inner in inside if any(t is tensor for _, t in inner.tensors)), default=None)
    return made is not None and any(
        inner.start > made and storage_of(tensor) in inner.inputs and any(map(ways.over, inner.nodes))
        for inner in inside
    )


def _in_both(
    fits: list[tuple[Layout, Shape]], shape: Shape, others: list[tuple[Layout, Shape]], other: Shape
) -> list[tuple[Layout, Shape]]:
    """Keep the layouts that fit at both sizes with as many channels: sites follow the input's size, channels do not."""
    layouts = {layout for layout, _ in others}
    return [
        (layout, stride)
        for layout, stride in fits
        if layout in layouts and shape[layout.channel_dim] == other[layout.channel_dim]
    ]


# Choosing ---------------------------------------------------------------------------------------------------------


def _best(
    model: nn.Module, found: list[Candidate], look: _Look, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Candidate:
    """Choose the bottleneck.

    Raises:
        ValueError: There is none.
    """
    found = [c for c in found if not _passed_through(c.call, c.tensor, look.ways)]
    lacking = f"on a coarser grid than its input {look.image}"
    while level := _level(look.trace, found, look):
        coarsest = _by_preference(model, level, look)
        for candidate in coarsest:
            if _is_used(model, candidate, args, kwargs, look):
                return candidate
        lacking = "whose replacement would change the output"
        found = [c for c in found if c not in coarsest]
    raise ValueError(
        f"find_bottleneck found no code in {type(model).__name__} {lacking}; its modules return "
        f"{_returned(look.trace)}. Pass layer= with the name of the module whose output should be masked."
    )


def _level(call: Call, found: list[Candidate], look: _Look) -> list[Candidate]:
    """Descend from the model to the level of modules at which its grid shrinks most; return that level's candidates.

    At each level stands the choice between the codes that its modules return and smaller ones inside one of them. The
    larger share of the reduction decides: a U-Net nested in a wrapper, or in itself, is entered; a detour inside a
    decoder is not. Where they tie, a module that is named like a decoder is not entered.
    """
    found = _without_detours(call, found, look.ways)
    inside = {id(child): [c for c in found if _within(c.call, child)] for child in call.children}
    here = [c for child in call.children for c in found if c.call is child]
    deeper = [child for child in call.children if any(c.call is not child for c in inside[id(child)])]
    if not deeper:
        return here
    child = min(deeper, key=lambda child: min(c.sites for c in inside[id(child)]))
    smallest_inside = min(c.sites for c in inside[id(child)])
    if not here:
        return _level(child, inside[id(child)], look)
    smallest_here = min(c.sites for c in here)
    coarsest = [c for c in here if c.sites == smallest_here]
    if smallest_inside == smallest_here and all(_is_decoder(c) for c in coarsest):
        encoders = [
            child for child in deeper if any(c.sites == smallest_here and not _is_decoder(c) for c in inside[id(child)])
        ]
        return (_level(encoders[0], inside[id(encoders[0])], look) or here) if encoders else here
    if smallest_inside >= smallest_here:
        return here
    if _comes_up_again(child, inside[id(child)], smallest_here, look.image):
        return _level(child, inside[id(child)], look) or here
    # A level of a U nested in itself is alone in returning the coarsest code; what it reduces itself counts, then.
    owner = child if all(c.call is child for c in coarsest) else call
    before, after = _entry(owner, look.image) / smallest_here, smallest_here / smallest_inside
    enter = after > before or (math.isclose(after, before) and not _DECODER.search(child.name))
    return (_level(child, inside[id(child)], look) or here) if enter else here


def _comes_up_again(call: Call, inside: list[Candidate], sites: float, image: Shape) -> bool:
    """Tell whether a call goes down, from a grid finer than `sites`, to codes coarser and wider than it returns."""
    own = [c.channels for c in inside if c.call is call]
    deep = [c.channels for c in inside if c.call.parent is call and c.sites < sites]
    return bool(own and deep) and max(deep) > max(own) and min(_entries(call, image), default=1.0) > sites


def _without_detours(call: Call, found: list[Candidate], ways: _Ways) -> list[Candidate]:
    """Drop grids that only thin branches visit.

    Encoders grow wider as they get coarser. What narrows on a coarser grid, such as context pooled for a decoder, is a
    detour, unless all that reaches the output passes there.
    """
    kept = found
    here = [c for c in found if c.call.parent is call]
    for sites in sorted({c.sites for c in found}, reverse=True):
        finer = [c for c in here if c in kept and c.sites > sites]
        coarse = [c for c in kept if c.sites <= sites]
        if not finer or not coarse:
            continue
        nearest = min(c.sites for c in finer)
        sources = ancestors([c.node for c in coarse])
        widths = [c.channels for c in finer if c.sites == nearest and c.node in sources]
        width = max((c.channels for c in coarse if c.learned), default=0)
        if widths and width < max(widths) and ways.lead_past({c.node for c in coarse}):
            kept = [c for c in kept if c.sites > sites]
    return kept


def _is_decoder(candidate: Candidate) -> bool:
    """Tell whether the names of module and output say so; it breaks ties only."""
    return any(_DECODER.search(str(name)) for name in (candidate.call.name, *candidate.path))


def _entry(call: Call, image: Shape) -> float:
    """Return the finest grid among the inputs of a call, as a share of the image's sites."""
    return max(_entries(call, image), default=1.0)


def _entries(call: Call, image: Shape) -> list[float]:
    return [1 / math.prod(fit[1]) for shape in call.given if (fit := infer_layout(shape, image))]


def _within(call: Call | None, ancestor: Call) -> bool:
    while call is not None:
        if call is ancestor:
            return True
        call = call.parent
    return False


def _by_preference(model: nn.Module, level: list[Candidate], look: _Look) -> list[Candidate]:
    """Sort the coarsest codes of a level: on the main road, not named like a decoder, widest, latest.

    What was only pooled counts half its width. Last come codes that no weights follow, which are the output, or nearly;
    and those that are read as pixels of a finer grid.
    """
    coarsest = min(c.sites for c in level)
    group = [c for c in level if math.isclose(c.sites, coarsest)]
    all_ways = look.ways.over_any({c.node for c in group})
    returned = {call: {c.node for c in group if c.call is call} for call in {c.call for c in group}}
    off_road = {call for call, nodes in returned.items() if 2 * look.ways.over_any(nodes) < all_ways}
    weighted = [call for call in look.trace.walk() if _has_weights(model.get_submodule(call.name))]
    return sorted(
        group,
        key=lambda c: (
            not _is_followed(c, weighted, look.ways) or look.ways.shuffles(c.node),
            c.call in off_road,
            _is_decoder(c),
            -c.channels / (2 if c.pooled else 1),
            -c.call.finish,
            -len(ancestors([c.node])),
        ),
    )


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _is_followed(candidate: Candidate, weighted: list[Call], ways: _Ways) -> bool:
    """Tell whether weights act on what comes of the code."""
    following = ways.after(candidate.node)
    return any(
        call.start > candidate.call.finish and any(node in following for node in call.nodes) for call in weighted
    )


def _is_used(
    model: nn.Module, candidate: Candidate, args: tuple[Any, ...], kwargs: dict[str, Any], look: _Look
) -> bool:
    """Tell whether the output follows from the tensor that the module returns, and is not just that tensor itself."""
    calls: Counter[str] = Counter()
    poisoned: list[Tensor] = []

    def poison(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (name, calls[name])
        calls[name] += 1
        output = original(*args, **kwargs)
        if key != candidate.call.key:
            return output
        code = item_at(output, candidate.path)
        # Not a number spreads to all that is computed from it, however faint the signal of an untrained model.
        poisoned.append(torch.full_like(code, math.nan))
        return map_tensors(output, lambda t: poisoned[0] if t is code else t)

    with preserved_modes(model), sandbox(model, device_of(model, args, kwargs)), torch.no_grad():
        model.train(look.training)
        args, kwargs = map_tensors((args, kwargs), torch.clone)
        with overridden(visible_modules(model), poison):
            output = model(*args, **kwargs)
    itself = {storage_of(tensor) for tensor in poisoned}
    results = [tensor for tensor in _results(output, look.logits) if storage_of(tensor) not in itself]
    return any(bool(tensor.isnan().any()) for tensor in results)


def _outermost(candidates: list[Candidate]) -> list[Candidate]:
    """Keep one candidate for each tensor: that of the outermost module that returns it."""
    kept: dict[int, Candidate] = {}
    for candidate in candidates:
        known = kept.get(id(candidate.tensor))
        if known is None or _within(known.call, candidate.call):
            kept[id(candidate.tensor)] = candidate
    return list(kept.values())


def _returned(trace: Call) -> str:
    seen = [f"{call.name} {tuple(t.shape)}" for call in trace.walk() if call is not trace for _, t in call.tensors]
    return ", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") if seen else "nothing"
