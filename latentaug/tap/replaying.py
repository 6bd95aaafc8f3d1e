"""Run the model again from new codes: what a captured pass is replayed by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from latentaug.tap.start import put_left, see_what_is_known
from latentaug.tap.whole_pass import ChangedReads, WholePassChange
from latentaug.tracing.fast_path import without_fast_path
from latentaug.tracing.intercept import overridden
from latentaug.tracing.isolation import constant_weights, frozen_norm_statistics, norm_tracking, repeated_norms
from latentaug.tracing.random_state import preserved_random_state
from latentaug.tracing.record import Spread
from latentaug.tracing.tree import Path, item_at, map_tensors, tensors_in

if TYPE_CHECKING:
    from latentaug.tap.capture import Capture, Record

NewCode: TypeAlias = Tensor | Callable[[Tensor], Tensor] | None


def replayed(
    capture: Capture,
    new: Sequence[NewCode],
    *,
    whole: WholePassChange | None,
    full: bool,
    detach: bool,
    update: bool,
) -> Any:
    """Run the model again as in a captured pass, from new codes, or with a change of the whole pass.

    Args:
        capture: The pass.
        new: What is to be in place of each code.
        whole: A change of the whole pass, which begins at the (first) code.
        full: Run also what could be skipped.
        detach: Cut off the graph of the captured pass.
        update: Let statistics and other state move.

    Raises:
        RuntimeError: Something that the pass was computed from has changed since.
    """
    model, plan, start = capture.model, capture.plan, capture.start
    if start is None:
        raise RuntimeError("A pass that was captured to be read has no replays.")
    see_what_is_known(start.verdicts)
    start.see_that_it_is_as_it_was()
    changed = start.changed_weights()
    if changed is not None and not detach:
        if changed in capture.unplanned:
            raise RuntimeError(
                f"LatentTap.replay needs what {type(model).__name__} keeps as it was when the forward pass began, but "
                f"this pass has moved {changed!r}, which it did not when its replays were proved, and the values are "
                "gone. Call the model again first: what moves now and then is known in later passes."
            )
        raise RuntimeError(
            f"LatentTap.replay needs the weights as they were in the forward pass, but {changed!r} has changed; "
            "perhaps an optimizer has changed them since. Replay before optimizer.step(), and before weights are "
            "averaged, swapped or loaded; or pass detach=True, which runs all of the model with the weights of now."
        )
    wants_grad = any(isinstance(code, Tensor) and code.requires_grad for code in new)
    grad = torch.is_grad_enabled() and (capture.grad or wants_grad)
    if grad and plan.graphless:
        raise RuntimeError(within_checkpoint(capture, "Replay under torch.no_grad(), or tap"))
    detach = detach or not grad or not capture.grad
    full = full or changed is not None or not capture.can_skip()
    args, kwargs = map_tensors(capture.inputs, lambda t: hand_out(t, clone=plan.clone_inputs, detach=detach))
    with ExitStack() as stack:
        stack.enter_context(start.lent(fixed=changed is None, state=not update, detach=detach))
        reads = None if whole is None else ChangedReads(model, grad=grad)
        again = Replay(
            capture, new, (args, kwargs), full=full, detach=detach, grad=grad, update=update, whole=whole, reads=reads
        )
        stack.enter_context(overridden({"": model, **plan.modules(model)}, again.handle))
        stack.enter_context(preserved_random_state(capture.device))
        for kind, dtype, enabled, cache in capture.autocast:
            # Weights cast without a graph must not be found in the cache by later code with one.
            stack.enter_context(torch.autocast(kind, dtype, enabled=enabled, cache_enabled=cache and not detach))
        stack.enter_context(torch.set_grad_enabled(grad))
        if grad and detach:
            again.at_code = stack.enter_context(constant_weights(model))
            if capture.grad:
                stack.enter_context(without_fast_path())
        if not update:
            roots = [model, *(module for _, module in start.state.hidden)]
            stack.enter_context(_unmoved_norms(roots, checkpointed=grad and plan.checkpointed))
        if reads is not None:
            stack.enter_context(reads.watching())
        stack.enter_context(again.spread or nullcontext())
        output = model(*args, **kwargs)
        if reads is not None:
            output = reads.finished(output)
    if not again.reached:
        raise RuntimeError(
            f"LatentTap.replay did not come to {capture.earliest[0]!r} again: {type(model).__name__} calls other "
            "modules than in the pass that was captured."
        )
    if changed is None:
        capture.note_weights()
    return output


def _unmoved_norms(roots: Sequence[nn.Module], *, checkpointed: bool) -> AbstractContextManager[None]:
    """Leave running statistics alone; where the backward pass normalises again, by kernels that are given as much."""
    if checkpointed:
        return repeated_norms([pair for root in roots for pair in norm_tracking(root)])
    return frozen_norm_statistics(*roots)


class Replay:
    """Answers the calls of one replay: from the records before the code, by running them after it."""

    def __init__(
        self,
        capture: Capture,
        new: Sequence[NewCode],
        inputs: Any,
        *,
        full: bool,
        detach: bool,
        grad: bool,
        update: bool,
        whole: WholePassChange | None,
        reads: ChangedReads | None,
    ):
        self.capture = capture
        self.whole = whole
        self.reads = reads
        self.new = new
        self.inputs = inputs
        self.full = full
        self.detach = detach
        self.grad = grad
        self.update = update
        records, late = ({}, frozenset()) if full else (capture.records, capture.plan.late)
        self.early = {key: entry for key, entry in records.items() if key not in late}
        # What follows the code is to be computed where only that is to get gradients.
        self.late = {key: records[key] for key in late} if not (grad and detach) and whole is None else {}
        # Whether they still don't depend on it is seen as they come.
        self.spread = Spread() if self.late else None
        self.counts: Counter[str] = Counter()
        self.reached = False
        self.at_code: Callable[[], None] = lambda: None  # what to do when the code is reached
        self._started = False

    def handle(self, name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call."""
        if name == "" and not self._started:
            self._started = True
            # What hooks made of the inputs in the captured pass, not what they would make of that again.
            args, kwargs = self.inputs
            self.capture.random.restore()
            self._follow(self.inputs)
        key = (name, self.counts[name])
        self.counts[name] += 1
        if key in self.capture.taps:
            return self._tapped(key, original, args, kwargs)
        if key in self.early and not self.reached:
            return self._skipped(self.early[key])
        if key in self.late and self.reached and not self._depends(name, args, kwargs):
            return self._skipped(self.late[key])
        return original(*args, **kwargs)

    def _depends(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Tell whether the code has a part in what a call is given, or in what its modules keep."""
        if self.spread is None or self.spread.reaches((args, kwargs)):
            return True
        modules = self.capture.model.get_submodule(name).modules()
        return any(self.spread.reaches([*vars(module).values(), module._buffers]) for module in modules)

    def _skipped(self, entry: Record) -> Any:
        entry.random.restore()
        self.counts.update(entry.inner)
        if not self.update:
            put_left(entry.left, detach=self.detach)
        return self._follow(entry.hand_out(detach=self.detach))

    def _follow(self, tree: Any) -> Any:
        if self.reads is not None and not self.reads.begun:
            self.reads.add(tree)
        return tree

    def _tapped(
        self, key: tuple[str, int], original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        capture = self.capture
        entry = capture.taps[key]
        first = key == capture.earliest
        wanted = {
            spot.path: code
            for spot, chosen, code in zip(capture.plan.spots, capture.chosen, self.new, strict=True)
            if chosen == key
        }
        run = self._must_run(entry, wanted, first)
        tree = original(*args, **kwargs) if run else self._skipped(entry)
        if self.grad and self.capture.start is not None and self.capture.start.saves_otherwise(key):
            raise RuntimeError(
                within_checkpoint(capture, "Call the model again first; replay without gradients, or tap")
            )
        if first:
            self.reached = True
            entry.random.restore()
            self.at_code()
        put = {}
        with gradients_if(self.grad):
            for path, new in wanted.items():
                returned = item_at(tree, path)
                recomputed = run and (self.full or not first)
                current = returned if recomputed else hand_out(entry.codes[path][1], clone=False, detach=self.detach)
                put[id(returned)] = _new_code(new, current).clone()
        if self.spread is not None:
            self.spread.add([*put.values()])
        tree = self._follow(map_tensors(tree, lambda t: put.get(id(t), t)))
        if first and self.reads is not None and self.whole is not None:
            self.reads.begin(self.whole, next(iter(put.values())))
            codes = {id(code): self.reads.returned(code) for code in put.values()}
            tree = map_tensors(tree, lambda t: codes.get(id(t), t))
        return tree

    def _must_run(self, entry: Record, wanted: dict[Path, NewCode], first: bool) -> bool:
        if self.full or entry.impure or not entry.intact():
            return True
        if first:
            return False
        codes = {id(returned) for returned, _ in entry.codes.values()}
        replaced = all(isinstance(code, Tensor) for code in wanted.values()) and len(wanted) == len(entry.codes)
        return not (replaced and all(id(tensor) in codes for _, tensor in tensors_in(entry.tree)))


@contextmanager
def gradients_if(wanted: bool) -> Iterator[None]:
    """Enable or disable gradients, also within inference mode."""
    with torch.inference_mode(not wanted and torch.is_inference_mode_enabled()), torch.set_grad_enabled(wanted):
        yield


def hand_out(tensor: Tensor, *, clone: bool, detach: bool) -> Tensor:
    """Return a recorded tensor in a form that the running model may use."""
    if detach:
        tensor = tensor.detach()
    return tensor.clone() if clone or tensor.is_inference() else tensor


def _new_code(new: NewCode, current: Tensor) -> Tensor:
    code = current if new is None else new(current) if callable(new) else new
    if not isinstance(code, Tensor):
        raise TypeError(
            f"LatentTap.replay needs a tensor, or a callable that returns one; got {type(code).__name__}. "
            "Pass mask.apply or mask.apply(tap.code)."
        )
    if code.shape != current.shape or code.device != current.device:
        raise ValueError(
            f"LatentTap.replay needs a code of shape {tuple(current.shape)} on {current.device}; "
            f"got {tuple(code.shape)} on {code.device}."
        )
    if code.dtype != current.dtype and not torch.is_autocast_enabled(code.device.type):  # which casts it
        raise TypeError(
            f"LatentTap.replay needs a code of {current.dtype}; got {code.dtype}. Write code.to({current.dtype})."
        )
    return code


def within_checkpoint(capture: Capture, remedy: str) -> str:
    """Say why a code of an activation-checkpointed part has no replays with gradients."""
    return (
        f"LatentTap cannot replay from {capture.earliest[0]!r}: it runs inside an activation-checkpointed part of "
        f"{type(capture.model).__name__}, and the backward pass would compute that part again with the old code. "
        f"{remedy} the module whose whole call is checkpointed, or one outside of it; with use_reentrant=False in any "
        "case."
    )
