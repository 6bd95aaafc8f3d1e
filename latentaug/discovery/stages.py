"""The stages of an encoder, and of the decoder behind it, as one pass shows them: whatever modules are called."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from latentaug.discovery.bottleneck import chosen
from latentaug.discovery.candidates import Candidate, Look, Seen, candidates, has_weights, is_within, results_of
from latentaug.discovery.graph_paths import Ways
from latentaug.tracing.record import Call

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
    encoder = _Road(look, found, look.ways, bottleneck.node)
    stages = encoder.stages(encoder.modules())
    stem = stages[0] if encoder.begins_with_a_stem(stages) else None
    stages = stages[stem is not None :]
    by_depth = sum(stage.learned for stage in stages) < 2
    if by_depth:
        parts = [c for c in encoder.modules(whole=False) if c.learned]
        ends = dict.fromkeys(-(-len(parts) * n // _PARTS) - 1 for n in range(1, _PARTS + 1))
        stages = [parts[end] for end in ends if end >= 0] or stages
    return Stages(bottleneck, stem, stages or [bottleneck], _decoder(model, look, found, bottleneck), by_depth)


def _decoder(model: nn.Module, look: Look, found: Sequence[Candidate], bottleneck: Candidate) -> list[Candidate]:
    """List the ends of the decoder's stages."""
    after = look.ways.after(bottleneck.node)
    results = [tensor for tensor in results_of(look.trace.output, look.logits) if tensor.grad_fn in after]
    if not results:
        return []
    finest = max(results, key=lambda tensor: (tensor.ndim, tensor.shape[2:].numel()))
    ways = Ways([finest.grad_fn], [bottleneck.node])
    road = _Road(look, found, ways, finest.grad_fn, alone=True)
    weighted = [call for call in look.trace.walk() if has_weights(model.get_submodule(call.name))]

    def is_followed(candidate: Candidate) -> bool:
        following = ways.after(candidate.node)
        return any(
            call.start > candidate.call.finish and any(node in following for node in call.nodes) for call in weighted
        )

    followed = {c.node for c in road.found if c.node is not bottleneck.node and is_followed(c)}
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
        self._named = [c for c in self.found if self._reaches_what_follows(c) and self._is_one(c, alone)]

    def modules(self, *, whole: bool = True, only: Collection[Any] | None = None) -> list[Candidate]:
        """Choose the outermost modules of the road that hold one step of it each; of some nodes only, if told.

        Not `whole` are modules that hold less than half of the road.
        """
        nodes: dict[Any, list[Candidate]] = {}
        for candidate in self._named:
            entered = self._is_entered(candidate) or (not whole and self._is_most(candidate.call))
            if not entered and (only is None or candidate.node in only):
                nodes.setdefault(candidate.node, []).append(candidate)
        outermost = [min(same, key=lambda c: (_depth(c.call), c.call.finish)) for same in nodes.values()]
        calls = {c.call for c in outermost}
        return [c for c in outermost if not any(c.call is not call and is_within(c.call, call) for call in calls)]

    def stages(self, modules: Sequence[Candidate]) -> list[Candidate]:
        """Return the last module of each stage: a grid, or on one grid where channels grow by half at least."""
        groups: list[list[Candidate]] = []
        for module in modules:
            before = groups[-1] if groups else []
            widths = [c.channels for c in before if c.learned]
            grown = bool(widths) and module.learned and module.channels >= _WIDER * widths[0]
            if not before or module.sites != before[-1].sites or grown:
                groups.append([])
            groups[-1].append(module)
        return [
            group[-1] for group in groups if any(c.learned for c in group) or any(c.node is self._end for c in group)
        ]

    def begins_with_a_stem(self, stages: Sequence[Candidate]) -> bool:
        """Tell whether the first stage has no shortcuts, and the second has, as the stages of residual networks do."""
        return len(stages) > 2 and self._ways.arriving(stages[0].node) == 1 < self._ways.arriving(stages[1].node)

    def _reaches_what_follows(self, candidate: Candidate) -> bool:
        """Tell whether nothing that follows on the road was computed before the call returned."""
        here = self._place[candidate.node]
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

    def _is_entered(self, candidate: Candidate) -> bool:
        """Tell whether a call holds more than a step to another grid, or something finer that is read elsewhere too."""
        inside = [c for c in self.found if is_within(c.call, candidate.call)]
        before = [c for c in self.found if c.call.finish < candidate.call.start]
        entering = before[-1].sites if before else 1.0
        if len({c.sites for c in inside} - {entering}) > 1:
            return True
        finer = {c.node for c in inside if c.sites > candidate.sites}
        return bool(finer) and not finer.isdisjoint(self._look.ways.leading_past({candidate.node}))

    def _is_most(self, call: Call) -> bool:
        nodes = {c.node for c in self.found if c.learned}
        return 2 * len({c.node for c in self.found if c.learned and is_within(c.call, call)}) > len(nodes)


def _depth(call: Call) -> int:
    return 0 if call.parent is None else 1 + _depth(call.parent)
