"""Find out what replays of a model may skip, and prove it on the model itself.

One recorded pass tells which calls finished before the code, and whether anything but what they returned came of them;
what the record cannot show, such as state kept on modules, shows when fast and full replays are compared.
"""

from __future__ import annotations

import logging
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug.tap.capture import Capture, Key, Plan
from latentaug.tap.proof import captured, prove, see_that_a_tap_changes_nothing
from latentaug.tracing.fingerprint import Fingerprint
from latentaug.tracing.intercept import is_compiled
from latentaug.tracing.isolation import sandbox, submodules
from latentaug.tracing.keeping import is_flattened, is_spread
from latentaug.tracing.location import Spot, device_of, few_samples, first_samples, image_in, resized
from latentaug.tracing.moving import Values
from latentaug.tracing.random_state import RandomState
from latentaug.tracing.record import Call, can_be_watched, record
from latentaug.tracing.state import State
from latentaug.tracing.tree import item_at, map_tensors, storage_of, tensors_in

logger = logging.getLogger("latentaug")


def make_plan(
    model: nn.Module, spots: tuple[Spot, ...], call: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan:
    """Find out what a replay of `model` from `spots` may skip, and prove it on two samples of the inputs.

    The plan is read off a pass of two samples at full size. Where these are much of the batch, it is proved on smaller
    images, if a pass of them shows the same. Parameters, buffers, gradients, modes and random state are left as they
    were.

    Raises:
        RuntimeError: A tapped module is not called, or even a full replay does not repeat the forward pass.
    """
    if any(map(is_flattened, submodules(model)[1:])):
        raise TypeError(
            f"LatentTap cannot replay {type(model).__name__}: parts of it are wrapped by FullyShardedDataParallel by "
            "themselves, which frees their weights in the first backward pass through a graph. Shard it by "
            "torch.distributed.fsdp.fully_shard, or wrap the whole model only."
        )
    inputs, device = (args, kwargs), device_of(model, args, kwargs)
    with sandbox(model, device):
        # A proof starts from what the model keeps now, as the next pass will: what is drawn once is drawn in it, too.
        clock, kept = Clock(device), State(model)
        sample, obstacle = first_samples(inputs, few_samples(model)), ""
        try:
            seen, _ = _seen(model, spots, call, sample)
        except Exception as error:  # a model that insists on the batch it was called with; if it fails again, so be it
            obstacle = f"it refuses two images ({_first_line(error)})"
            clock = Clock(device)
            sample = first_samples(inputs, None)
            seen, _ = _seen(model, spots, call, sample)
        fraction, once = _size(sample) / _size(inputs), clock.seconds()
        plan, misfit = None, None
        if seen.shared is not None:
            see_that_a_tap_changes_nothing(model, seen.plan, sample, seen.shared)
        if not obstacle and fraction > _LITTLE:
            plan, obstacle = _proved_on_smaller(model, seen, sample, kept)
        if plan is None:
            kept.give_back()
            plan, misfit = prove(*captured(model, seen.plan, *map_tensors(sample, torch.clone)), sample)
        seconds = clock.seconds()
    _tell(model, obstacle or "smaller images take it nearly as long", seconds, seconds / once * fraction)
    return without_skipping(model, plan, misfit) if misfit else plan


_LITTLE = 1 / 8  # of a batch, on which a proof takes about as long as a forward pass of all of it


_MANY, _LONG = 5, 1.0  # forward passes, and seconds, from which on a proof is worth a word


_TOLD: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _tell(model: nn.Module, reason: str, seconds: float, passes: float) -> None:
    """Say once that a proof took long, and why."""
    if passes > _MANY and seconds > _LONG and model not in _TOLD:
        _TOLD.add(model)
        message = (
            "It took %.1f s, about %.0f forward passes, to prove replays of %s, because %s. Later passes are spared."
        )
        logger.info(message, seconds, passes, type(model).__name__, reason)


class Clock:
    """Seconds since it was made, with what a device still had to do."""

    def __init__(self, device: torch.device):
        self._device = device
        self._started = self._now()

    def _now(self) -> float:
        if self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize(self._device)
        return time.perf_counter()

    def seconds(self) -> float:
        """Return how many have passed."""
        return self._now() - self._started


def _size(inputs: Any) -> int:
    return max(1, sum(tensor.numel() for _, tensor in tensors_in(inputs)))


def _first_line(error: Exception) -> str:
    return "".join([type(error).__name__, *(f": {line}" for line in str(error).splitlines()[:1])])


class _Seen(NamedTuple):
    """What a recorded pass showed, apart from values.

    Args:
        plan: What replays may skip.
        calls: All calls in order, and how autograd saved what each computed.
        attributes: What modules changed on themselves.
        codes: Shapes of the codes.
        shared: A tapped module that returned memory which is known elsewhere, and was changed in place later.
    """

    plan: Plan
    calls: list[tuple[Key, str]]
    attributes: frozenset[str]
    codes: list[tuple[int, ...]]
    shared: str | None = None

    def difference(self, small: _Seen) -> str | None:
        """Tell how a pass of smaller images differs, as far as replays are concerned; None if it doesn't."""
        axes = zip(chain.from_iterable(self.codes), chain.from_iterable(small.codes), strict=False)
        if any(size > 1 == smaller for size, smaller in axes):
            return "has a code of a single position"
        plan, other = (replace(one.plan, cloned=frozenset()) for one in (self, small))  # which is seen in every pass
        if plan != other or self.calls != small.calls or not self.attributes <= small.attributes:
            return "does not run alike"
        return None


def _seen(
    model: nn.Module, spots: tuple[Spot, ...], call: int, inputs: Any, run: Callable[..., Any] | None = None
) -> tuple[_Seen, Any]:
    """Run the model once, and read off its calls what may be skipped; return that with the output."""
    args, kwargs = map_tensors(inputs, torch.clone)
    state, given = State(model, copied=None), Fingerprint([tensor for _, tensor in tensors_in((args, kwargs))])
    values, random = Values(model, state.hidden), RandomState.capture(device_of(model, args, kwargs))
    names = frozenset(spot.name for spot in spots)
    # A compiled part runs other code while operations are watched, and shows none of them when it doesn't.
    watched = can_be_watched(inputs) and not any(map(is_compiled, submodules(model)))
    sources = spots if watched else ()
    trace, output = record(model, lambda: (run or model)(*args, **kwargs), inside=names, sources=sources)
    totals = Counter(entry.name for entry in trace.walk())
    after = State(model)
    attributes = after.changed_since(state)
    plan = Plan(
        spots=spots,
        call=call,
        totals={spot.name: totals[spot.name] for spot in spots},
        kept=frozenset(),
        late=frozenset(),
        cloned=frozenset(),
        clone_inputs=trace.impure or bool(given.changed(wait=True)),
        moving=frozenset(attributes | values.moved(trainable=False)),
        interpreter=random.interpreter_moved(),
        moves_weights=frozenset(values.moved(trainable=True)),
        scratch=frozenset(attributes & (state.large() | after.large())),
        checkpointed=any(entry.saving == "packed" for entry in trace.walk()),
    )
    keys = {plan.chosen(spot) for spot in spots}
    tapped = sorted((entry for entry in trace.walk() if entry.key in keys), key=lambda entry: entry.finish)
    # Hooks on a call's backward pass see the gradients of what runs within that very call only.
    hooked = [entry for entry in trace.walk() if model.get_submodule(entry.name)._backward_hooks]
    # What objects of a model's own have become within a call is not noted.
    objects = after.owners_of_objects(attributes)
    opaque = [entry for entry in trace.walk() if any(_is_in(owner, entry.name) for owner in objects)]
    kept = _skippable(trace, tapped, {*opaque, *(inner for entry in hooked for inner in entry.walk())})
    plan = replace(
        plan,
        kept=frozenset(entry.key for entry in kept),
        late=frozenset(entry.key for entry in kept if entry.start > tapped[0].finish),
        cloned=frozenset(entry.key for entry in [*kept, *tapped] if entry.moved()),
        saving=tuple((entry.key, entry.saving) for entry in [*kept, *tapped] if entry.saving),
    )
    codes = {entry.key: entry.output for entry in tapped}
    held = state.storages() | _storages(chain(model.parameters(), model.buffers()))
    shared = (entry.name for entry in tapped if _storages(entry.moved()) & (entry.inputs | held | after.storages()))
    seen = _Seen(
        plan,
        [(entry.key, entry.saving) for entry in trace.walk()],
        frozenset(attributes),
        [tuple(item_at(codes[plan.chosen(spot)], spot.path).shape) for spot in spots],
        next(shared, None),
    )
    return seen, output


def _is_in(owner: str, name: str) -> bool:
    """Tell whether a module is another, or inside it, by their names."""
    return not name or owner == name or owner.startswith(f"{name}.")


def _skippable(trace: Call, tapped: list[Call], rejected: set[Call]) -> list[Call]:
    """Outermost calls that no code has a part in, and whose only effect is what they returned."""
    while True:
        kept = list(_independent(trace, tapped, rejected))
        shared = {call for call in kept if call.moved() and _shares(call, kept)}
        if not shared:
            return kept
        rejected |= shared


def _independent(call: Call, tapped: list[Call], rejected: set[Call]) -> Iterator[Call]:
    first = tapped[0]
    for child in call.children:
        if child in tapped:
            continue
        independent = child.finish < first.finish or (child.start > first.finish and child.apart)
        if independent and not child.impure and child not in rejected:
            yield child
        else:
            yield from _independent(child, tapped, rejected)


def _shares(call: Call, others: list[Call]) -> bool:
    """Tell whether something that `call` returned, and that was changed later, is also known elsewhere."""
    moved = _storages(call.moved())
    if moved & call.inputs:
        return True
    return any(moved & _storages(t for _, t in other.tensors) for other in others if other is not call)


def _storages(tensors: Iterable[Tensor]) -> set[int]:
    return {storage_of(tensor) for tensor in tensors}


# Proving ----------------------------------------------------------------------------------------------------------
def _proved_on_smaller(model: nn.Module, seen: _Seen, sample: Any, kept: State) -> tuple[Plan | None, str]:
    """Prove a plan on smaller images, of which a pass shows the same as at full size; or tell why that won't do."""
    if any(map(is_compiled, submodules(model))):
        return None, "it is compiled, for one size"
    if _waits_for_others(model):
        return None, "it is spread over processes, which must all make the same passes"
    obstacle = "its inputs cannot be made smaller"
    for size in _smaller_sizes(sample):
        small = resized(sample, size)
        at = " x ".join(map(str, size))
        kept.give_back()
        try:
            again, capture, output = _seen_and_captured(model, seen.plan, small)
            if difference := seen.difference(again):
                obstacle = f"it {difference} on smaller ones ({at})"
                continue
            plan, misfit = prove(capture, output, small)
        except Exception as error:  # models refuse sizes in their own ways
            obstacle = f"it refuses smaller ones ({at}; {_first_line(error)})"
            continue
        if misfit or plan.graphless or plan != seen.plan:
            return None, "smaller ones do not prove them"
        return plan, ""
    return None, obstacle


def _waits_for_others(model: nn.Module) -> bool:
    """Tell whether a pass of the model waits for those of other processes, whose batches may be of other sizes."""
    return is_spread(model) or any(isinstance(module, nn.SyncBatchNorm) for module in submodules(model))


def _seen_and_captured(model: nn.Module, plan: Plan, inputs: Any) -> tuple[_Seen, Capture, Any]:
    captures: list[Capture] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        capture, output = captured(model, plan, args, kwargs)
        captures.append(capture)
        return output

    seen, output = _seen(model, plan.spots, plan.call, inputs, run)
    return seen, captures[0], output


def _smaller_sizes(sample: Any) -> list[tuple[int, ...]]:
    """List a quarter and a half of the images' size, of 32 pixels or more, and as often divisible by 2, up to 32.

    There are none if the model is given anything that may refer to positions of the image, such as points.
    """
    image = image_in(sample)
    if image is None or image.is_complex():
        return []
    if any(tensor.ndim > 1 and tensor.shape[2:] != image.shape[2:] for _, tensor in tensors_in(sample)):
        return []
    sizes = [
        tuple(min(s, max(32, -(-s // (parts * math.gcd(s, 32))) * math.gcd(s, 32))) for s in image.shape[2:])
        for parts in (4, 2)
    ]
    return [size for size in dict.fromkeys(sizes) if 2 * math.prod(size) <= math.prod(image.shape[2:])]


def without_skipping(model: nn.Module, plan: Plan, reason: str) -> Plan:
    """Return the plan for full replay, and say why; once, as plans are kept."""
    logger.info("%s is replayed in full, because %s; the results are the same.", type(model).__name__, reason)
    return replace(plan, fast=False)
