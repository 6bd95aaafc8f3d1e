"""The stages of an encoder, and of the decoder behind it, as one pass shows them: whatever modules are called."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from latentaug.discovery.bottleneck import chosen, is_followed
from latentaug.discovery.candidates import (
    Candidate,
    Look,
    Seen,
    candidates,
    finest_input,
    has_weights,
    is_within,
    read_past,
    results_of,
)
from latentaug.discovery.graph_paths import Ways
from latentaug.tracing.record import Call
from latentaug.tracing.tree import storage_of

_WIDER = 1.5
"""By how much channels grow where a stage begins without a coarser grid, as in encoders that dilate."""

_PARTS = 4
"""Into how many parts of equal depth an encoder of one grid is cut, as decoders cut vision transformers."""


@dataclass(frozen=True)
class Stages:
    """Where stages end, each in a module whose change all that follows sees.

    Args:
        bottleneck: What `find_bottleneck` finds.
        stem: The end of what comes before the first stage, if anything does.
        encoder: The ends of the encoder's stages, fine to coarse; the last is that of the bottleneck.
        decoder: The ends of the decoder's stages, coarse to fine; the logits are none.
        by_depth: Whether the encoder has one grid, and was cut into parts of equal depth.
    """

    bottleneck: Candidate
    stem: Candidate | None
    encoder: list[Candidate]
    decoder: list[Candidate]
    by_depth: bool


def stages_of(model: nn.Module, look: Look, again: Seen | None) -> Stages:
    """Find the stages in what dry runs showed.

    Raises:
        ValueError: There is no bottleneck.
    """
    bottleneck = chosen(model, look, again)[0]
    found = candidates(model, look, again, guess=again is not None, coarser=False) or candidates(
        model, look, again, guess=True, coarser=False
    )
    found = [c for c in found if c.sites >= bottleneck.sites]  # of what seems coarser, the layout was misread
    doubtful = {c.call.name for c in found if c.call.impure and storage_of(c.tensor) in c.call.inputs}
    ignored = read_past(model, look, doubtful)
    found = [c for c in found if c.call.name not in ignored]
    encoder = _Road(look, found, look.ways, bottleneck.node)
    stages = encoder.stages(encoder.modules(), split=True)
    stem = stages[0] if encoder.begins_with_a_stem(stages) else None
    stages = stages[stem is not None :]
    parts = _cut_by_depth(encoder, look) if len(stages) < 2 else []
    by_depth = len(parts) > 1
    stages = parts or stages
    if not stages or _level(stages[-1]) < _level(bottleneck):
        if len(stages) < 2 or not bottleneck.pooled:
            stages.append(bottleneck)
    elif stages[-1].path or stages[-1].stride != bottleneck.stride:  # of several results, or a layout was misread
        stages[-1] = bottleneck
    return Stages(bottleneck, stem, stages, _decoder(model, look, found, bottleneck), by_depth)


def _cut_by_depth(encoder: _Road, look: Look) -> list[Candidate]:
    """List the ends of equal parts of an encoder; of none that begins with several streams."""
    modules = [c for c in encoder.modules(whole=False) if c.learned]
    if not modules or finest_input(modules[0].call, look.image) < 1:
        return []
    ends = [-(-len(modules) * part // _PARTS) - 1 for part in range(1, _PARTS + 1)]
    return [modules[end] for end in dict.fromkeys(ends)]


def _decoder(model: nn.Module, look: Look, found: Sequence[Candidate], bottleneck: Candidate) -> list[Candidate]:
    """List the ends of the decoder's stages."""
    after = look.ways.after(bottleneck.node)
    results = [tensor for tensor in results_of(look.trace.output, look.logits) if tensor.grad_fn in after]
    results.sort(key=lambda tensor: (tensor.ndim, tensor.shape[2:].numel()), reverse=True)
    weighted = [call for call in look.trace.walk() if has_weights(model.get_submodule(call.name))]
    decoders = (_decoder_of(result.grad_fn, look, found, bottleneck, weighted) for result in results)
    return next(filter(None, decoders), [])


def _decoder_of(
    end: Any, look: Look, found: Sequence[Candidate], bottleneck: Candidate, weighted: list[Call]
) -> list[Candidate]:
    """List the ends of the stages that lead to one result."""
    ways = Ways([end], [bottleneck.node])
    road = _Road(look, found, ways, end, alone=True)
    followed = {
        c.node
        for c in road.found
        if c.node is not bottleneck.node and c.node is not end and is_followed(c, weighted, ways)
    }
    # Where the head is all that there is of a decoder, it is looked into.
    modules = [c for c in road.modules() if c.node in followed] or road.modules(only=followed)
    return road.stages(modules)


class _Road:
    """What all ways from one place of a pass to another lead over, and the modules that return it.

    Args:
        look: The dry run.
        found: What its modules return.
        ways: The ways from where the road begins.
        end: Where it ends.
        alone: Whether a module that is called elsewhere too is none of the road.
    """

    def __init__(self, look: Look, found: Sequence[Candidate], ways: Ways, end: Any, *, alone: bool = False) -> None:
        leading = ways.leading_to(end)
        self._look, self._ways, self._end = look, ways, end
        self._place = {node: place for place, node in enumerate(leading)}
        self.found = [c for c in found if leading.get(c.node)]
        self.found.sort(key=lambda c: (self._place[c.node], c.call.finish))
        self._calls: dict[str, list[Call]] = {}
        for call in look.trace.walk():
            self._calls.setdefault(call.name, []).append(call)
        self._made: dict[Any, int] = {}  # when the first call that returns it did so
        for candidate in self.found:
            made = self._made.setdefault(candidate.node, candidate.call.finish)
            self._made[candidate.node] = min(made, candidate.call.finish)
        self._named = [
            c
            for c in self.found
            if self._reaches_all_that_follows(c) and self._is_one(c, alone) and not self._is_hooked_inside(c)
        ]

    def modules(self, *, whole: bool = True, only: Collection[Any] | None = None) -> list[Candidate]:
        """Choose the outermost modules of the road that hold one step of it each; of some nodes only, if told.

        Not `whole` are modules that hold less than half of the road.
        """
        nodes: dict[Any, list[Candidate]] = {}
        for candidate in self._named:
            entered = self._is_entered(candidate) or (not whole and self._is_most(candidate.call))
            if not entered and (only is None or candidate.node in only):
                nodes.setdefault(candidate.node, []).append(candidate)
        outermost = [min(same, key=lambda c: (c.call.depth, c.call.finish)) for same in nodes.values()]
        calls = {c.call for c in outermost}
        return [c for c in outermost if not any(c.call is not call and is_within(c.call, call) for call in calls)]

    def stages(self, modules: Sequence[Candidate], *, split: bool = False) -> list[Candidate]:
        """Return the last module of each stage: of a grid, or if told of the coarsest before channels grow by half."""
        coarsest = max(map(_level, modules), default=0)
        groups: list[list[Candidate]] = []
        for module in modules:
            before = groups[-1] if groups else []
            widths = [c.channels for c in before if c.learned]
            splits = split and module.learned and _level(module) == coarsest
            grown = splits and bool(widths) and module.channels >= _WIDER * widths[0]
            if not before or _level(module) != _level(before[-1]) or grown:
                groups.append([])
            groups[-1].append(module)
        groups = [group for group in groups if any(c.learned for c in group)]
        return [self._end_of(group, last=group is groups[-1]) for group in groups]

    def _end_of(self, group: Sequence[Candidate], *, last: bool) -> Candidate:
        """Return the last module of a stage such that what the stage computes before it is read by nothing else."""
        first = next(place for place, c in enumerate(group) if c.learned)
        for place in range(len(group) - 1, first - 1, -1):
            past = set() if last else self._look.ways.leading_past({group[place].node})
            if not any(c.node in past for c in group[:place]):
                return group[place]
        return group[-1]

    def begins_with_a_stem(self, stages: Sequence[Candidate]) -> bool:
        """Tell whether the first stage has no shortcuts, and the second has, as the stages of residual networks do."""
        return len(stages) > 2 and self._ways.arriving(stages[0].node) == 1 < self._ways.arriving(stages[1].node)

    def _reaches_all_that_follows(self, candidate: Candidate) -> bool:
        """Tell whether the call makes what it returns, and returns before anything that follows is computed."""
        here = self._place[candidate.node]
        if candidate.call.start > self._made[candidate.node]:
            return False
        inside = (node for call in candidate.call.walk() for node in call.nodes)
        return all(self._place.get(node, -1) <= here for node in inside)

    def _is_one(self, candidate: Candidate, alone: bool) -> bool:
        """Tell whether all calls of the module return codes like this one; on the road, if told."""
        for call in self._calls[candidate.call.name]:
            node, shape = next(
                ((n, t.shape) for (p, t), n in zip(call.tensors, call.nodes, strict=True) if p == candidate.path),
                (None, None),
            )
            if shape != candidate.tensor.shape or (alone and node not in self._place):
                return False
        return True

    def _is_hooked_inside(self, candidate: Candidate) -> bool:
        """Tell whether hooks of the model read the code inside the call, where it was made: it returns it too late."""
        return any(
            c.node is candidate.node and c.call.hooked and c.call is not candidate.call
            for c in self.found
            if is_within(c.call, candidate.call)
        )

    def _is_entered(self, candidate: Candidate) -> bool:
        """Tell whether a call holds more than a step to another grid, or something finer that is read elsewhere too."""
        call = candidate.call
        inside = [c for c in self.found if is_within(c.call, call) and self._made[c.node] > call.start]
        before = [c for c in self.found if c.call.finish < call.start]
        entering = _level(before[-1]) if before else 0
        if len({_level(c) for c in inside} - {entering}) > 1:
            return True
        finer = {c.node for c in inside if _level(c) < _level(candidate)}
        return bool(finer) and not finer.isdisjoint(self._look.ways.leading_past({candidate.node}))

    def _is_most(self, call: Call) -> bool:
        nodes = {c.node for c in self.found if c.learned}
        return 2 * len({c.node for c in self.found if c.learned and is_within(c.call, call)}) > len(nodes)


def _level(candidate: Candidate) -> int:
    """Count how often the input's grid was halved along an axis; padding makes no difference."""
    return round(-math.log2(candidate.sites))
