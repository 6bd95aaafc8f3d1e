"""Find the latent codes of a model from one dry run, with no knowledge of its library."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.checks import called_on_example
from latentaug.discovery.candidates import (
    Candidate,
    Look,
    Seen,
    candidates,
    finest_input,
    has_weights,
    input_grids,
    is_within,
    look_at,
    results_of,
    seen_again,
)
from latentaug.discovery.graph_paths import Ways
from latentaug.tracing.infer_layout import Shape
from latentaug.tracing.intercept import overridden, visible_modules
from latentaug.tracing.isolation import preserved_modes, sandbox
from latentaug.tracing.location import Location, as_inputs, device_of, image_in, unwrap
from latentaug.tracing.record import Call, ancestors
from latentaug.tracing.tree import item_at, map_tensors, storage_of

__all__ = ["Location", "find_bottleneck"]


_DECODER = re.compile(r"(^|[._])(decod\w*|up\w*|head\w*|aux\w*|classif\w*|seg\w*_head|neck)([._]|\d|$)", re.IGNORECASE)


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
    with called_on_example("find_bottleneck", model, example):
        return bottleneck(unwrap(model), *as_inputs(example), logits=logits)


def bottleneck(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, logits: Callable[[Any], Any] | None = None
) -> Location:
    """Do what `find_bottleneck` does, for a model that is not wrapped and arguments that are spelled out."""
    return ranked(model, args, kwargs, logits)[0].location


def ranked(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Callable[[Any], Any] | None
) -> list[Candidate]:
    """Return the candidates, the bottleneck first."""
    look, again = looked(model, args, kwargs, logits)
    best, found = chosen(model, look, again)
    rest = sorted((c for c in found if c is not best), key=lambda c: (c.sites, -c.channels))
    return [best, *_outermost(rest)]


def looked(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], logits: Callable[[Any], Any] | None
) -> tuple[Look, Seen | None]:
    """Make the dry runs: one that shows what depends on what, and one at another size."""
    if image_in((args, kwargs)) is None:
        raise ValueError("find_bottleneck needs an image [B, C, *S] among the model's inputs; found none. Pass layer=.")
    try:
        look = look_at(model, (args, kwargs), logits, samples=2)
    except Exception:  # a model that insists on the batch it was called with; if it fails again, so be it
        look = look_at(model, (args, kwargs), logits, samples=None)
    return look, seen_again(model, look)


def chosen(model: nn.Module, look: Look, again: Seen | None) -> tuple[Candidate, list[Candidate]]:
    """Return the bottleneck, and all candidates."""
    found = candidates(model, look, again, guess=again is not None) or candidates(model, look, again, guess=True)
    return _best(model, found, look, again), found


# Choosing ---------------------------------------------------------------------------------------------------------
def _best(model: nn.Module, found: list[Candidate], look: Look, again: Seen | None) -> Candidate:
    """Choose the bottleneck.

    Raises:
        ValueError: There is none.
    """
    found = [c for c in found if not _passed_through(c.call, c.tensor, look.ways)]
    lacking = f"on a coarser grid than the input, `example`, of shape {(look.batch, *look.image[1:])}"
    while level := _level(look.trace, found, look):
        coarsest = _by_preference(model, level, look)
        for candidate in coarsest:
            if _is_used(model, candidate, look, again):
                return candidate
        lacking = "whose replacement would change the output"
        found = [c for c in found if c not in coarsest]
    raise ValueError(
        f"find_bottleneck found no code in {type(model).__name__} {lacking}; its modules return "
        f"{_returned(look.trace)}. Pass layer= with the name of the module whose output should be masked."
    )


def _passed_through(call: Call, tensor: Tensor, ways: Ways) -> bool:
    """Tell whether a call returns what a call inside it made and others inside it used: too late to replace it."""
    inside = [inner for inner in call.walk() if inner is not call]
    made = max((inner.finish for inner in inside if any(t is tensor for _, t in inner.tensors)), default=None)
    return made is not None and any(
        inner.start > made and storage_of(tensor) in inner.inputs and any(map(ways.over, inner.nodes))
        for inner in inside
    )


def _level(call: Call, found: list[Candidate], look: Look) -> list[Candidate]:
    """Descend from the model to the level of modules at which its grid shrinks most; return that level's candidates.

    At each level stands the choice between the codes that its modules return and smaller ones inside one of them. The
    larger share of the reduction decides: a U-Net nested in a wrapper, or in itself, is entered; a detour inside a
    decoder is not. Where they tie, a module that is named like a decoder is not entered.
    """
    found = _without_detours(call, found, look.ways)
    inside = {id(child): [c for c in found if is_within(c.call, child)] for child in call.children}
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
    before, after = finest_input(owner, look.image) / smallest_here, smallest_here / smallest_inside
    enter = after > before or (math.isclose(after, before) and not _DECODER.search(child.name))
    return (_level(child, inside[id(child)], look) or here) if enter else here


def _comes_up_again(call: Call, inside: list[Candidate], sites: float, image: Shape) -> bool:
    """Tell whether a call goes down, from a grid finer than `sites`, to codes coarser and wider than it returns."""
    own = [c.channels for c in inside if c.call is call]
    deep = [c.channels for c in inside if c.call.parent is call and c.sites < sites]
    return bool(own and deep) and max(deep) > max(own) and min(input_grids(call, image), default=1.0) > sites


def _without_detours(call: Call, found: list[Candidate], ways: Ways) -> list[Candidate]:
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


def _by_preference(model: nn.Module, level: list[Candidate], look: Look) -> list[Candidate]:
    """Sort the coarsest codes of a level: on the main road, not named like a decoder, widest, latest.

    What was only pooled counts half its width. Last come codes that no weights follow, which are the output, or nearly;
    and those that are read as pixels of a finer grid.
    """
    coarsest = min(c.sites for c in level)
    group = [c for c in level if math.isclose(c.sites, coarsest)]
    all_ways = look.ways.over_any({c.node for c in group})
    returned = {call: {c.node for c in group if c.call is call} for call in {c.call for c in group}}
    off_road = {call for call, nodes in returned.items() if 2 * look.ways.over_any(nodes) < all_ways}
    weighted = [call for call in look.trace.walk() if has_weights(model.get_submodule(call.name))]
    return sorted(
        group,
        key=lambda c: (
            not is_followed(c, weighted, look.ways) or look.ways.shuffles(c.node),
            c.call in off_road,
            _is_decoder(c),
            -c.channels / (2 if c.pooled else 1),
            -c.call.finish,
            -len(ancestors([c.node])),
        ),
    )


def is_followed(candidate: Candidate, weighted: list[Call], ways: Ways) -> bool:
    """Tell whether weights act on what comes of the code."""
    following = ways.after(candidate.node)
    return any(
        call.start > candidate.call.finish and any(node in following for node in call.nodes) for call in weighted
    )


def _is_used(model: nn.Module, candidate: Candidate, look: Look, again: Seen | None) -> bool:
    """Tell whether the output follows from the tensor that the module returns, and is not just that tensor itself."""
    looked = [look.inputs]
    if again is not None and (candidate.call.key, candidate.path) in again.returned:
        looked.insert(math.prod(again.image) > math.prod(look.image), again.inputs)  # the smaller image first
    return any(_spreads(model, candidate, look, inputs) for inputs in looked)


def _spreads(model: nn.Module, candidate: Candidate, look: Look, inputs: Any) -> bool:
    """Tell whether what a call returns spreads to the output of a pass, other than as itself."""
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

    with preserved_modes(model), sandbox(model, device_of(model, *inputs)), torch.no_grad():
        model.train(look.training)
        args, kwargs = map_tensors(inputs, torch.clone)
        with overridden(visible_modules(model), poison):
            output = model(*args, **kwargs)
    itself = {storage_of(tensor) for tensor in poisoned}
    results = [tensor for tensor in results_of(output, look.logits) if storage_of(tensor) not in itself]
    return any(bool(tensor.isnan().any()) for tensor in results)


def _outermost(candidates: list[Candidate]) -> list[Candidate]:
    """Keep one candidate for each tensor: that of the outermost module that returns it."""
    kept: dict[int, Candidate] = {}
    for candidate in candidates:
        known = kept.get(id(candidate.tensor))
        if known is None or is_within(known.call, candidate.call):
            kept[id(candidate.tensor)] = candidate
    return list(kept.values())


def _returned(trace: Call) -> str:
    seen = [f"{call.name} {tuple(t.shape)}" for call in trace.walk() if call is not trace for _, t in call.tensors]
    return ", ".join(seen[:8]) + (", …" if len(seen) > 8 else "") if seen else "nothing"
