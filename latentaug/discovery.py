"""Find the latent codes of a model from one dry run, with no knowledge of its library."""

from __future__ import annotations

import difflib
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug.layout import CHANNELS_FIRST, CHANNELS_LAST, Layout
from latentaug.modes import preserved_modes
from latentaug.planning import captured, make_plan, relative_change, sandbox
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
    tensors_in,
    visible_modules,
)

_DECODER = re.compile(r"(^|[._])(decod\w*|up\w*|head\w*|aux\w*|classif\w*|seg\w*_head|neck)([._]|\d|$)", re.IGNORECASE)
_PREFIXES = (0, 1, 2, 5)  # none, a class token, class and distillation tokens, class and four register tokens
_LARGEST_TEST = 2**19  # sites; a test at twice the size of a large volume takes longer than it is worth
_WRAPPER = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)(?=\.|$)")


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
        shape = list(self.shape[1:])
        del shape[self.layout.channel_dim - 1 if self.layout.channel_dim > 0 else self.layout.channel_dim]
        return tuple(shape)


@dataclass(frozen=True)
class Row:
    """One candidate of a `Description`."""

    location: Location
    type: str
    chosen: bool
    saved: float
    influence: float | None

    @property
    def leak(self) -> float | None:
        """Share of the output that does not pass through the code: 1 - influence, clipped to 0..1."""
        return None if self.influence is None else min(max(1 - self.influence, 0.0), 1.0)


@dataclass(frozen=True)
class Description:
    """Candidates for the tap of a model; print it."""

    model: str
    rows: list[Row]

    def __str__(self) -> str:
        head = ("", "layer", "type", "shape", "layout", "stride", "saves", "influence", "leak")
        body = [
            (
                "*" if row.chosen else "",
                str(row.location),
                row.type,
                "x".join(map(str, row.location.shape)),
                str(row.location.layout),
                "x".join(map(str, row.location.stride)),
                f"{row.saved:.0%}",
                "n/a" if row.influence is None else f"{row.influence:.3f}",
                "n/a, signal dead: train first" if row.leak is None else f"{row.leak:.3f}",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *body]
        ]
        return "\n".join([f"{self.model}: * is the layer that layer=None takes", *(line.rstrip() for line in lines)])


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
    shape, size = tuple(shape), tuple(image[2:])
    if len(shape) < 3 or not size or shape[0] != image[0]:
        return None
    if len(shape) == len(size) + 2:
        options = [(CHANNELS_FIRST, shape[2:]), (CHANNELS_LAST, shape[1:-1])]
        fits = [(layout, [s / g for s, g in zip(size, grid, strict=True)]) for layout, grid in options]
        fits = [(layout, ratios) for layout, ratios in fits if min(ratios) >= 0.99]
        if not fits:
            return None
        layout, ratios = min(fits, key=lambda fit: max(fit[1]) / min(fit[1]))  # channels first where they tie
        return layout, tuple(max(1, round(ratio)) for ratio in ratios)
    return _token_layout(shape, size) if len(shape) == 3 else None


def _token_layout(shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[Layout, tuple[int, ...]] | None:
    for exact in (True, False):
        for axis in (1, 2):
            for prefix in _PREFIXES if axis == 1 else (0,):
                for stride in range(1, max(size) + 1):
                    if exact and any(s % stride for s in size):
                        continue
                    if math.prod(-(-s // stride) for s in size) == shape[axis] - prefix:
                        layout = Layout(-1, prefix) if axis == 1 else CHANNELS_FIRST
                        return layout, (stride,) * len(size)
    return None


def image_in(inputs: Any) -> Tensor | None:
    """Return the image among a model's inputs: the first tensor [B, C, *S], of floating point if there is one."""
    images = [tensor for _, tensor in tensors_in(inputs) if tensor.ndim >= 3]
    return next((image for image in images if image.is_floating_point()), images[0] if images else None)


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
class _Candidate:
    call: Call
    path: Path
    tensor: Tensor
    node: Any
    layout: Layout
    stride: tuple[int, ...]

    @property
    def sites(self) -> float:
        """Share of the input's sites that the code has."""
        return 1 / math.prod(self.stride)

    @property
    def channels(self) -> int:
        return int(self.tensor.shape[self.layout.channel_dim])

    @property
    def location(self) -> Location:
        return Location(self.call.name, self.path, self.layout, tuple(self.tensor.shape), self.stride)


def find_bottleneck(model: nn.Module, example: Any, *, logits: Callable[[Any], Tensor] | None = None) -> Location:
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
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, logits: Callable[[Any], Tensor] | None = None
) -> Location:
    """Do what `find_bottleneck` does, for a model that is not wrapped and arguments that are spelled out."""
    return _ranked(model, args, kwargs, logits)[0].location


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
                "tap. Pass a module that is."
            )
        if not -len(calls) <= call < len(calls):
            raise ValueError(f"LatentTap needs `call` within the {len(calls)} calls of {name!r}; got {call}.")
        spot = spot_in(name, path, calls[call].output)
        if spot in spots:
            raise ValueError(f"LatentTap needs different layers; got {name!r} twice.")
        spots[spot] = tuple(item_at(calls[call].output, spot.path).shape)
    return spots


def _ranked(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Callable[[Any], Tensor] | None
) -> list[_Candidate]:
    """Return the candidates, the bottleneck first."""
    image = image_in((args, kwargs))
    if image is None:
        raise ValueError("find_bottleneck needs an image [B, C, *S] among the model's inputs; found none. Pass layer=.")
    trace = _dry_run(model, args, kwargs)
    reachable = ancestors(trace.nodes if logits is None else [logits(trace.output).grad_fn])
    fixed = _fixed_size(model, args, kwargs, image, trace)
    found = [
        candidate
        for call in trace.walk()
        if call is not trace
        for candidate in _candidates(call, tuple(image.shape), reachable)
        if math.prod(candidate.stride) >= 2 and (candidate.call.key, candidate.path) not in fixed
    ]
    level = _level(trace, found, tuple(image.shape))
    if not level:
        raise ValueError(
            f"find_bottleneck found no code in {type(model).__name__} on a coarser grid than its input "
            f"{tuple(image.shape)}; its modules return {_returned(trace)}. Pass layer= with the name of the module "
            "whose output should be masked."
        )
    best = next((c for c in _by_preference(level) if _is_used(model, c, args, kwargs, logits)), None)
    if best is None:
        raise ValueError(
            f"find_bottleneck found no code in {type(model).__name__} whose replacement would change the output. "
            "Pass layer= with the name of the module whose output should be masked."
        )
    rest = sorted((c for c in found if c is not best), key=lambda c: (c.sites, -c.channels))
    return [best, *_outermost(rest)]


def _dry_run(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    with preserved_modes(model), sandbox(model, device_of(model, args, kwargs)):
        model.eval()
        args, kwargs = map_tensors((args, kwargs), _differentiable)
        return record(model, lambda: model(*args, **kwargs))[0]


def _differentiable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().clone()
    return tensor.requires_grad_() * 1 if tensor.is_floating_point() else tensor


def _candidates(call: Call, image: tuple[int, ...], reachable: set[Any]) -> Iterator[_Candidate]:
    for (path, tensor), node in zip(call.tensors, call.nodes, strict=True):
        if node is not None and node in reachable and (fit := infer_layout(tensor.shape, image)):
            yield _Candidate(call, path, tensor, node, *fit)


def _fixed_size(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], image: Tensor, trace: Call
) -> set[Any]:
    """Find tensors whose grid does not follow the input's, pooled to fixed bins; none if the model allows no test."""
    shapes = {(call.key, path): tuple(t.shape) for call in trace.walk() for path, t in call.tensors}
    for factor in (0.5, 2.0):
        size = [max(1, int(s * factor)) for s in image.shape[2:]]
        if math.prod(size) > max(_LARGEST_TEST, math.prod(image.shape[2:])):
            break

        def resize(tensor: Tensor, size: list[int] = size) -> Tensor:
            if tensor.shape[2:] != image.shape[2:]:
                return tensor[:1] if tensor.ndim and tensor.shape[0] == image.shape[0] else tensor
            return nn.functional.interpolate(tensor[:1].float(), size=size).to(tensor.dtype)

        small_args, small_kwargs = map_tensors((args, kwargs), resize)
        try:
            other = _dry_run(model, small_args, small_kwargs)
        except Exception:  # models of one size refuse any other in their own ways
            continue
        resized = {(call.key, path): tuple(t.shape) for call in other.walk() for path, t in call.tensors}
        return {key for key, shape in shapes.items() if key in resized and shape[1:] == resized[key][1:]}
    return set()


def _level(call: Call, found: list[_Candidate], image: tuple[int, ...]) -> list[_Candidate]:
    """Descend from the model to the level of modules at which its grid shrinks most; return that level's candidates.

    At each level stands the choice between the codes that its modules return and smaller ones inside one of them. The
    larger share of the reduction decides: a U-Net nested in a wrapper, or in itself, is entered; a detour inside a
    decoder is not. Where they tie, a module that is named like a decoder is not entered.
    """
    inside = {id(child): [c for c in found if _within(c.call, child)] for child in call.children}
    here = [c for child in call.children for c in found if c.call is child]
    deeper = [child for child in call.children if any(c.call is not child for c in inside[id(child)])]
    if not deeper:
        return here
    child = min(deeper, key=lambda child: min(c.sites for c in inside[id(child)]))
    smallest_inside = min(c.sites for c in inside[id(child)])
    if not here:
        return _level(child, inside[id(child)], image)
    smallest_here = min(c.sites for c in here)
    if smallest_inside >= smallest_here:
        return here
    # A level of a U nested in itself is alone in returning the coarsest code; what it reduces itself counts, then.
    owner = child if all(c.call is child for c in here if c.sites == smallest_here) else call
    before, after = _entry(owner, image) / smallest_here, smallest_here / smallest_inside
    enter = after > before or (math.isclose(after, before) and not _DECODER.search(child.name))
    return (_level(child, inside[id(child)], image) or here) if enter else here


def _entry(call: Call, image: tuple[int, ...]) -> float:
    """Return the finest grid among the inputs of a call, as a share of the image's sites."""
    fits = [fit for shape in call.given if (fit := infer_layout(shape, image))]
    return max((1 / math.prod(stride) for _, stride in fits), default=1.0)


def _within(call: Call | None, ancestor: Call) -> bool:
    while call is not None:
        if call is ancestor:
            return True
        call = call.parent
    return False


def _by_preference(level: list[_Candidate]) -> list[_Candidate]:
    """Sort the coarsest codes of a level: not named like a decoder, most channels, latest, computed from the most."""
    coarsest = min(c.sites for c in level)
    return sorted(
        (c for c in level if math.isclose(c.sites, coarsest)),
        key=lambda c: (bool(_DECODER.search(c.call.name)), -c.channels, -c.call.finish, -len(ancestors([c.node]))),
    )


def _is_used(
    model: nn.Module,
    candidate: _Candidate,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    logits: Callable[[Any], Tensor] | None,
) -> bool:
    """Tell whether the output follows from the tensor that the module returns, and not from another that it is in."""
    calls: Counter[str] = Counter()

    def poison(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (name, calls[name])
        calls[name] += 1
        output = original(*args, **kwargs)
        if key != candidate.call.key:
            return output
        code = item_at(output, candidate.path)
        # Not a number spreads to all that is computed from it, however faint the signal of an untrained model.
        return map_tensors(output, lambda t: torch.full_like(t, math.nan) if t is code else t)

    with preserved_modes(model), sandbox(model, device_of(model, args, kwargs)), torch.no_grad():
        model.eval()
        args, kwargs = map_tensors((args, kwargs), torch.clone)
        with overridden(visible_modules(model), poison):
            output = model(*args, **kwargs)
    result = output if logits is None else logits(output)
    return any(bool(tensor.isnan().any()) for _, tensor in tensors_in(result))


def _outermost(candidates: list[_Candidate]) -> list[_Candidate]:
    """Keep one candidate for each tensor: that of the outermost module that returns it."""
    kept: dict[int, _Candidate] = {}
    for candidate in candidates:
        known = kept.get(id(candidate.tensor))
        if known is None or _within(known.call, candidate.call):
            kept[id(candidate.tensor)] = candidate
    return list(kept.values())


def _returned(trace: Call) -> str:
    seen = [f"{call.name} {tuple(t.shape)}" for call in trace.walk() if call is not trace for _, t in call.tensors]
    return ", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") if seen else "nothing"


# Describing -------------------------------------------------------------------------------------------------------


def describe(model: nn.Module, example: Any, *, logits: Callable[[Any], Tensor] | None = None) -> Description:
    """List a model's latent codes, with what tapping each of them would bring; print the result.

    For every candidate: path, type of module, shape, layout, stride, the share of the forward's time that a replay
    saves, and the *influence* ‖f(code = 0) - f‖ / ‖f‖ with its complement, the *leak*: what skip connections carry
    past the code. Timings are of one run each, in eval mode.

    Args:
        model: Any segmentation model.
        example: An input batch, as in `find_bottleneck`.
        logits: Reads the logits from the model's output. Default: every tensor in it counts.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.Upsample(scale_factor=2), nn.Conv2d(8, 2, 1))
        >>> [str(row.location) for row in describe(model, torch.randn(1, 1, 16, 16)).rows]
        ['0']
    """
    root = unwrap(model)
    args, kwargs = as_inputs(example)
    ranked = _ranked(root, args, kwargs, logits)
    shown = ranked[:1] + [c for c in ranked[1:] if c.call.parent is None or c.call.parent.name == ""][:11]
    rows = []
    with preserved_modes(root), sandbox(root, device_of(root, args, kwargs)):
        root.eval()
        for candidate in shown:
            spot = Spot(candidate.call.name, candidate.path)
            saved, influence = _effect(root, spot, candidate.call.number, args, kwargs, logits)
            kind = type(root.get_submodule(candidate.call.name)).__name__
            rows.append(Row(candidate.location, kind, candidate is ranked[0], saved, influence))
    return Description(type(root).__name__, rows)


def _effect(
    model: nn.Module,
    spot: Spot,
    call: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    logits: Callable[[Any], Tensor] | None,
) -> tuple[float, float | None]:
    plan = make_plan(model, (spot,), call, args, kwargs)
    with torch.no_grad():
        start = time.perf_counter()
        capture, output = captured(model, plan, args, kwargs)
        middle = time.perf_counter()
        without = capture.replay([torch.zeros_like])
        end = time.perf_counter()
    influence = relative_change(*(result if logits is None else logits(result) for result in (without, output)))
    return max(0.0, 1 - (end - middle) / (middle - start)), None if influence < 1e-4 else influence
