"""What a pass starts from: inputs, weights, modes, and whatever the model keeps; and whether all that is still so."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug.tracing.fingerprint import Fingerprint, Verdict
from latentaug.tracing.moving import PassTensors
from latentaug.tracing.record import InputWatch, saving_now
from latentaug.tracing.state import State, restore
from latentaug.tracing.tree import copied, map_tensors, tensors_in


class Left(NamedTuple):
    """Something that a call has set on a module."""

    holder: dict[str, Any]
    key: str
    value: Any


class Start:
    """What a pass of a model starts from.

    Args:
        model: The model, as the pass begins.
        inputs: Arguments of the pass.
        moving: Names of buffers, frozen weights and attributes that it moves.
        weights: Names of weights that learn, and that it moves itself.
        scratch: Names of attributes that it writes before it reads them.
        saving: How autograd is known to save what some calls compute.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        moving: Collection[str] = (),
        weights: Collection[str] = (),
        scratch: Collection[str] = (),
        saving: Mapping[tuple[str, int], str] | None = None,
    ) -> None:
        self._model, self._moving, self._scratch, self._saving = model, moving, scratch, saving or {}
        self.state = State(model, copied=moving, left_out=scratch)
        self.tensors = PassTensors(model, moving, self.state.hidden)
        self._moves_weights = bool(weights)
        self._weights = [
            (slot.value, copied(slot.value))
            for slot in self.tensors.slots
            if slot.name in weights and slot.kind is not None and not self.tensors.spread
        ]
        self.verdicts: list[Verdict] = []
        self._inputs = InputWatch(*inputs)
        self._inputs_print = Fingerprint([tensor for _, tensor in tensors_in(inputs)], elsewhere=False)
        self._movers = self._find_movers()

    def _find_movers(self) -> list[tuple[str, dict[str, Any], str]]:
        names = set(self._moving) - set(self._scratch)
        movers = []
        for slot in self.tensors.slots if names else ():
            if slot.name in names:
                movers.append((slot.path, slot.holder, slot.key))
                names.discard(slot.name)
        owners = {path: attributes for path, attributes, _ in self.state.attributes} if names else {}
        for name in names:
            path, _, key = name.rpartition(".")
            if path in owners:
                movers.append((path, owners[path], key))
        return movers

    # In passing -------------------------------------------------------------------------------------------------------

    def saves_otherwise(self, key: tuple[str, int]) -> bool:
        """Tell whether autograd, by activation checkpointing, saves what a call computes in another way than known."""
        if key not in self._saving or not torch.is_grad_enabled():
            return False
        return (saving_now() == "packed") != (self._saving[key] == "packed")

    def expect(self, saving: Mapping[tuple[str, int], str]) -> None:
        """Take other ways of saving for those that are known."""
        self._saving = saving

    def left_by(self, name: str) -> list[Left]:
        """Note what a call that has just finished has set on its module and on those inside."""
        within = f"{name}." if name else ""
        return [
            Left(holder, key, map_tensors(holder[key], copied))
            for path, holder, key in self._movers
            if key in holder and (path == name or path.startswith(within))
        ]

    def unplanned(self) -> set[str]:
        """Name what the finished pass has moved that was not known to move."""
        moved = self.tensors.moved(trainable=not self._moves_weights)
        if self._moves_weights:
            self.tensors.note()
        after = State(self._model, left_out=self._scratch, small=False)
        return (moved | after.changed_since(self.state)) - set(self._moving)

    # Afterwards -------------------------------------------------------------------------------------------------------

    def see_that_it_is_as_it_was(self) -> None:
        """Refuse a replay if the inputs, the modes, or the types of weights are others now.

        Raises:
            RuntimeError: They are.
        """
        if self._inputs.changed() or self._inputs_print.changed():
            raise RuntimeError(
                "LatentTap.replay needs the model's inputs as they were in the forward pass, but they were changed "
                "in place since. Change a clone of them, or replay first."
            )
        if (reason := self.tensors.switched()) is not None:
            raise RuntimeError(
                f"LatentTap.replay needs the model in the modes of the forward pass, but {reason} since. Replay "
                "before model.train() or model.eval(), or call the model again in the new mode first."
            )
        if (reason := self.tensors.recast()) is not None:
            raise RuntimeError(
                f"LatentTap.replay needs the weights as they were in the forward pass, but {reason}. Replay before the "
                "model is cast or moved, or call it again first."
            )

    def changed_weights(self) -> str | None:
        """Name a weight or a buffer that has other values now; or tell None.

        Values on accelerators are compared when these come to it: see `see_what_is_known`.
        """
        name = next(iter(self.tensors.changed()), None)
        if name is None and self.tensors.print.waits:
            self.verdicts.append(self.tensors.print.verdict())
        return name

    @contextmanager
    def lent(self, *, fixed: bool, state: bool, detach: bool) -> Iterator[None]:
        """Let the model start from here again, and give it back what it has now.

        Args:
            fixed: Whether the very weights of the pass are lent, where others stand in their place.
            state: Whether what moves starts from here.
            detach: Whether what is lent is cut off from the graph of the pass.

        Raises:
            RuntimeError: Something that was not known to move has moved since, in place.
        """
        with ExitStack() as stack:
            stack.enter_context(self.tensors.lent(fixed=fixed, starts=state))
            if fixed and state:
                stack.enter_context(_set_back(self._weights))
            if state:
                if altered := self.state.altered():
                    raise RuntimeError(
                        f"LatentTap.replay needs what {type(self._model).__name__} keeps as it was in the forward "
                        f"pass, but {sorted(altered)[0]!r} was changed in place, in it or since, and its values are "
                        "gone. Call the model again first; make it a buffer if passes change it."
                    )
                stack.callback(State(self._model, small=False).give_back)
                self.state.lend(detach=detach)
            yield


@contextmanager
def _set_back(weights: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Let weights have earlier values, and give them back those of now; no version counter tells of it."""
    now = [(weight, weight.detach().clone()) for weight, _ in weights]
    try:
        for weight, value in weights:
            restore(weight, value, required_grad=weight.requires_grad)
        yield
    finally:
        for weight, value in now:
            restore(weight, value, required_grad=weight.requires_grad)


def put_left(left: list[Left], *, detach: bool) -> None:
    """Set on modules what a call has set, without making the call."""
    for holder, key, value in left:
        was = holder.get(key)
        new = map_tensors(value, lambda tensor: tensor.detach().clone() if detach else copied(tensor))
        holder[key] = nn.Parameter(new, requires_grad=False) if isinstance(was, nn.Parameter) else new


def see_what_is_known(verdicts: list[Verdict]) -> None:
    """Refuse to go on after a replay with changed weights, once that is known; drop what is settled.

    Raises:
        RuntimeError: There was one.
    """
    answers = [verdict() for verdict in verdicts]
    verdicts[:] = [verdict for verdict, answer in zip(verdicts, answers, strict=True) if answer is None]
    if any(answers):
        raise RuntimeError(
            "LatentTap.replay needs the weights as they were in the forward pass, but in an earlier replay they had "
            "changed on their device, where version counters do not tell. Replay before weights are averaged, swapped "
            "or loaded."
        )
