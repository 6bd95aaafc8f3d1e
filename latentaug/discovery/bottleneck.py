"""Find the latent codes of a model from one dry run, with no knowledge of its library."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

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
from latentaug.discovery.reach import Reach, reach
from latentaug.tracing.infer_layout import Shape
from latentaug.tracing.lazy import initialise
from latentaug.tracing.location import Location, as_inputs, image_in, unwrap
from latentaug.tracing.record import Call, ancestors
from latentaug.tracing.tree import storage_of

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
            differ help to tell channels from spatial positions.
        logits: Reads from the model's output what must depend on the code. Default: what is named "out" or "logits",
            with auxiliary ones; where nothing is, every tensor in it.

    Raises:
        ValueError: No submodule returns a code that is coarser than the input; the error lists what there is.

    Example:
        >>> import torch
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
    initialise(model, args, kwargs)
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
    everything = found
    found = [c for c in found if not _passed_through(c.call, c.tensor, look.ways)]
    classified = _classified(model, found, look)
    if len(classified) < len(found):
        found = [c for c in found if c not in classified]
    else:
        classified = []
    lacking = f"on a coarser grid than the input, `example`, of shape {(look.batch, *look.image[1:])}"
    while level := _level(look.trace, found, classified, look):
        coarsest = _by_preference(model, level, look)
        for candidate in coarsest:
            if (one := _replaceable(model, candidate, everything, look, again)) is not None:
                return one
        lacking = "whose replacement would change the output"
        found = [c for c in found if c not in coarsest]
    raise ValueError(
        f"find_bottleneck found no code in {type(model).__name__} {lacking}; its modules return "
        f"{_returned(look.trace)}. Pass layer= with the name of the module whose output should be masked"
        f"{_as_fine(model, look, again)}."
    )


def _as_fine(model: nn.Module, look: Look, again: Seen | None) -> str:
    """Name the widest codes on the input's own grid that all of the output comes of, and that weights follow."""
    fine = candidates(model, look, again, guess=again is not None, coarser=False)
    weighted = [call for call in look.trace.walk() if has_weights(model.get_submodule(call.name))]
    all_ways = look.ways.over_any({c.node for c in fine})
    useful = [c for c in _outermost(fine) if look.ways.over(c.node) == all_ways and is_followed(c, weighted, look.ways)]
    useful.sort(key=lambda c: (-c.channels, -c.call.finish))
    names = [f"{str(c.location)!r} {tuple(c.tensor.shape)}" for c in useful[:3]]
    return f": all of the output comes of {', '.join(names)}, as fine as the input" if names else ""


def _replaceable(
    model: nn.Module, candidate: Candidate, found: list[Candidate], look: Look, again: Seen | None
) -> Candidate | None:
    """Return where a code is to be replaced, such that all who read it get what it is replaced by; None if nowhere is.

    That is the outermost call that returns it; or one inside that call, where the model reads by hooks what was
    returned there.
    """
    same = [c for c in found if c.node is candidate.node and is_within(c.call, candidate.call)]
    same.sort(key=lambda c: (c is not candidate, c.call.start))
    reached: Candidate | None = None
    for one in same:
        watched = one.call.hooked or any(c.call.hooked and is_within(c.call, one.call) for c in same)
        how = reach(model, one, look, again, watched=watched)
        if how is Reach.ALL:
            return one
        reached = reached or (one if how is Reach.SOME else None)
    return reached


def _classified(model: nn.Module, found: list[Candidate], look: Look) -> list[Candidate]:
    """List what is classes already: as many channels as the output, fewer than it came from, and none more after it."""
    classes = {t.shape[1] for t in results_of(look.trace.output, look.logits) if t.ndim > 2}
    narrowed = [c for c in found if c.channels in classes and _is_narrowed(c)]
    nodes = {c.node for c in narrowed if not _is_widened(model, c, look)}
    return [c for c in found if c.node in nodes]


def _is_narrowed(candidate: Candidate) -> bool:
    """Tell whether a call is given more channels than it returns."""
    axis, ndim = candidate.layout.channel_dim, candidate.tensor.ndim
    return any(shape[axis] > candidate.channels for shape in candidate.call.given if len(shape) == ndim)


def _is_widened(model: nn.Module, candidate: Candidate, look: Look) -> bool:
    """Tell whether something with weights makes more channels of a code."""
    following = look.ways.after(candidate.node)
    return any(
        tensor.ndim == candidate.tensor.ndim and tensor.shape[candidate.layout.channel_dim] > candidate.channels
        for call in look.trace.walk()
        if call.start > candidate.call.finish and has_weights(model.get_submodule(call.name))
        for (_, tensor), node in zip(call.tensors, call.nodes, strict=True)
        if node in following
    )


def _passed_through(call: Call, tensor: Tensor, ways: Ways) -> bool:
    """Tell whether a call returns what a call inside it made and others inside it used: too late to replace it."""
    inside = [inner for inner in call.walk() if inner is not call]
    made = max((inner.finish for inner in inside if any(t is tensor for _, t in inner.tensors)), default=None)
    return made is not None and any(
        inner.start > made and storage_of(tensor) in inner.inputs and any(map(ways.over, inner.nodes))
        for inner in inside
    )


def _level(call: Call, found: list[Candidate], classified: list[Candidate], look: Look) -> list[Candidate]:
    """Descend from the model to the level of modules at which its grid shrinks most; return that level's candidates.

    At each level stands the choice between the codes that its modules return and smaller ones inside one of them. The
    larger share of the reduction decides: a U-Net nested in a wrapper, or in itself, is entered; a detour inside a
    decoder is not. Where they tie, a module that is named like a decoder is not entered.
    """
    found = _without_detours(call, found, look.ways)
    inside = {id(child): [c for c in found if is_within(c.call, child)] for child in call.children}
    here = [c for child in call.children for c in _handed_out(child, inside[id(child)], classified, look.ways)]
    deeper = [child for child in call.children if any(c.call is not child for c in inside[id(child)])]
    if not deeper:
        return here
    smallest_inside = min(c.sites for child in deeper for c in inside[id(child)])
    smallest = {child: {c.node for c in inside[id(child)] if c.sites == smallest_inside} for child in deeper}
    least = [child for child, nodes in smallest.items() if nodes]
    child = least[0] if len(least) == 1 else max(least, key=lambda child: look.ways.over_any(smallest[child]))
    if not here:
        return _level(child, inside[id(child)], classified, look)
    smallest_here = min(c.sites for c in here)
    coarsest = [c for c in here if c.sites == smallest_here]
    if smallest_inside == smallest_here and all(_is_decoder(c) for c in coarsest):
        encoders = [
            child for child in deeper if any(c.sites == smallest_here and not _is_decoder(c) for c in inside[id(child)])
        ]
        return (_level(encoders[0], inside[id(encoders[0])], classified, look) or here) if encoders else here
    if smallest_inside >= smallest_here:
        return here
    if _comes_up_again(child, inside[id(child)], smallest_here, look.image):
        return _level(child, inside[id(child)], classified, look) or here
    # A level of a U nested in itself is alone in returning the coarsest code; what it reduces itself counts, then.
    owner = child if all(c.call is child for c in coarsest) else call
    before, after = finest_input(owner, look.image) / smallest_here, smallest_here / smallest_inside
    enter = after > before or (math.isclose(after, before) and not _DECODER.search(child.name))
    return (_level(child, inside[id(child)], classified, look) or here) if enter else here


def _handed_out(call: Call, inside: list[Candidate], classified: list[Candidate], ways: Ways) -> list[Candidate]:
    """List the codes that those around a call get from it: what it returns, and what hooks inside take past that.

    Of a call that returns classes already, these are the codes that it makes them of.
    """
    returned = [c for c in inside if c.call is call]
    hooked = [c for c in inside if c.call.hooked and c.call is not call]
    past = ways.leading_past(set(call.nodes)) if hooked else set()
    taken = [c for c in hooked if c.node in past]
    for classes in (c for c in classified if c.call is call):
        leading = ways.leading_to(classes.node)
        taken += [c for c in inside if math.isclose(c.sites, classes.sites) and leading.get(c.node) and c not in taken]
    return returned + [c for c in taken if c not in returned]


def _comes_up_again(call: Call, inside: list[Candidate], sites: float, image: Shape) -> bool:
    """Tell whether a call goes down, from a grid finer than `sites`, to codes coarser and wider than it returns."""
    own = [c.channels for c in inside if c.call is call]
    deep = [c.channels for c in inside if c.call.parent is call and c.sites < sites]
    return bool(own and deep) and max(deep) > max(own) and min(input_grids(call, image), default=1.0) > sites


def _without_detours(call: Call, found: list[Candidate], ways: Ways) -> list[Candidate]:
    """Drop grids that only thin branches visit.

    Encoders grow wider as they get coarser. What narrows on a coarser grid, such as context pooled for a decoder, is a
    detour, unless all that comes of what is next finer passes there.
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
        before = [c for c in finer if c.sites == nearest and c.node in sources]
        width = max([c.channels for c in coarse if c.learned] or [c.channels for c in coarse])
        narrower = width < max((c.channels for c in before), default=0)
        if narrower and not ways.leading_past({c.node for c in coarse}).isdisjoint(c.node for c in before):
            kept = [c for c in kept if c.sites > sites]
    return kept


def _is_decoder(candidate: Candidate) -> bool:
    """Tell whether the names of module and output say so; it breaks ties only."""
    return any(_DECODER.search(str(name)) for name in (candidate.call.name, *candidate.path))


def _by_preference(model: nn.Module, level: list[Candidate], look: Look) -> list[Candidate]:
    """Sort the coarsest codes of a level: by themselves, on the main road, not named like a decoder, widest, latest.

    What one call hands out is seen together. A code that others are added to is not by itself; one that others are
    concatenated to is. What was only pooled comes after what was computed. Last come codes that no weights follow,
    which are the output, or nearly; and those that are read as pixels of a finer grid.
    """
    coarsest = min(c.sites for c in level)
    group = [c for c in level if math.isclose(c.sites, coarsest)]
    nodes = {c.node for c in group}
    givers = {c: _giver(c, look.ways) for c in group}
    given = {call: {c.node for c in group if givers[c] is call} for call in givers.values()}
    all_ways = look.ways.over_any(nodes)
    off_road = {call for call, of_call in given.items() if 2 * look.ways.over_any(of_call) < all_ways}
    blended = {call for call, of_call in given.items() if look.ways.blends(of_call, nodes)}
    weighted = [call for call in look.trace.walk() if has_weights(model.get_submodule(call.name))]
    return sorted(
        group,
        key=lambda c: (
            not is_followed(c, weighted, look.ways) or look.ways.shuffles(c.node),
            givers[c] in off_road,
            givers[c] in blended,
            _is_decoder(c),
            c.pooled,
            -c.channels,
            -c.call.finish,
            -len(ancestors([c.node])),
        ),
    )


def _giver(candidate: Candidate, ways: Ways) -> Call:
    """Return the call that hands a code out: that which returns it, or around that the last that hooks take it past."""
    giver = candidate.call
    while candidate.call.hooked and giver.parent is not None and giver.parent.parent is not None:
        if candidate.node not in ways.leading_past(set(giver.parent.nodes)):
            break
        giver = giver.parent
    return giver


def is_followed(candidate: Candidate, weighted: list[Call], ways: Ways) -> bool:
    """Tell whether weights act on what comes of the code."""
    following = ways.after(candidate.node)
    return any(
        call.start > candidate.call.finish and any(node in following for node in call.nodes) for call in weighted
    )


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
