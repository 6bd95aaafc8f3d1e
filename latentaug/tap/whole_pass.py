"""Change all that was computed before a moment of a pass and is read after it, as mixing samples must.

A decoder reads more than the code: skip connections, the image, positions. Those who mix samples at the code mix these
too. Whatever memory comes of the inputs is followed up to the moment; what is read of it afterwards is read changed.
What reads it unseen, keeps it for the backward pass, or holds no samples is refused.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, Function, FunctionCtx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latentaug.tracing.isolation import is_norm_statistic, sandbox, submodules
from latentaug.tracing.location import batch_of, device_of
from latentaug.tracing.tree import is_differentiable, map_tensors, storage_of, tensors_in, version_of


@runtime_checkable
class WholePassChange(Protocol):
    """What a change must offer to be made in a whole pass."""

    @property
    def whole_pass(self) -> bool:
        """Whether it is one."""

    def apply(self, code: Tensor) -> Tensor:
        """Return a changed tensor whose first axis is the batch."""


class Unmixed:
    """The change that leaves every sample as it is, to see what a pass reads."""

    whole_pass = True

    def apply(self, code: Tensor) -> Tensor:
        """Return a copy."""
        return code.clone()


class CannotFollow(RuntimeError):
    """A model reads what was computed before the code in a way that cannot be changed, or not be seen."""


@dataclass(frozen=True)
class _Form:
    """A tensor from before the moment, and what is read in its place."""

    tensor: Tensor  # kept, so that no other takes its identity
    changed: Tensor
    version: int | None

    @property
    def moved(self) -> bool:
        """Whether it was changed in place since."""
        return version_of(self.changed) != self.version


class ChangedReads:
    """The tensors of one pass that come of its inputs, and how they are read once the moment has come.

    Args:
        model: The model whose pass it is.
        grad: Whether gradients are to reach what is read.

    Raises:
        CannotFollow: Now or later: the model reads in a way that cannot be followed.
    """

    def __init__(self, model: nn.Module, *, grad: bool) -> None:
        self._model = type(model).__name__
        self._grad = grad
        self._refused: CannotFollow | None = None
        self._constant = set(_constants(model))
        self._change: WholePassChange | None = None
        self._batch: int | None = None
        self._early: dict[int, object] = {}  # by memory; with what keeps other memory from taking its identity
        self._forms: dict[int, dict[int, _Form]] = {}  # by memory, then by tensor
        self._moment = 0  # number of the first autograd node after it
        self._numbers = ""  # how Python came to know what numbers were computed
        self.ours = False  # what is being done is none of the model's

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow what is computed, and change what is read, for as long as the context lasts."""
        try:
            with _uncompiled(), _Reads(self), _Guard(self):
                yield
        except Exception as error:
            if self._refused in (None, error):
                raise
            raise self._refused from error  # which scripted code tells in words of its own
        finally:
            self._refused = None  # whose traceback leads here again

    def add(self, tree: Any) -> None:
        """Follow these tensors; the inputs first."""
        with self.by_ourselves():
            if not self._early:
                self._batch = batch_of(tree)
            for _, tensor in tensors_in(tree):
                if (key := storage_of(tensor)) not in self._early and key not in self._constant:
                    self._early[key] = _hold(tensor)

    def begin(self, change: WholePassChange, code: Tensor) -> None:
        """From now on, as the code has been computed, let everything that was followed be read changed."""
        if self._change is not None:
            raise self._refusal("comes to its layer a second time in one pass")
        if self._batch not in (None, len(code)):
            raise self._refusal(f"has a code of {len(code)} rows for {self._batch} images, so that rows are no samples")
        if self._numbers:
            raise self._refusal(f"reads numbers out of what it computes before the code, by {self._numbers}")
        self._change, self._batch = change, len(code)
        self._moment = torch._C._autograd._get_sequence_nr()

    @property
    def begun(self) -> bool:
        """Whether the moment has come."""
        return self._change is not None

    def read(self, tensor: Tensor) -> Tensor:
        """Return what is read in place of a tensor: if it came before the moment, its changed form."""
        with self.by_ourselves():
            if self._change is None or not self._is_early(tensor):
                return tensor
            self._check(tensor)
            forms = self._forms.setdefault(storage_of(tensor), {})
            if any(form.moved for key, form in forms.items() if key != id(tensor)):
                raise self._refusal("changes, after the code, a tensor from before it in place and reads other views")
            if id(tensor) not in forms:
                with torch.set_grad_enabled(self._grad):
                    changed = self._change.apply(tensor)
                forms[id(tensor)] = _Form(tensor, changed, version_of(changed))
            return forms[id(tensor)].changed

    def returned(self, code: Tensor) -> Tensor:
        """Return what the tapped layer is to return for a code: changed, or in a checkpointed part as it is.

        That part is computed again in the backward pass, without us; what it returned is read changed outside of it.
        """
        return code if has_its_own_backward() else self.read(code)

    def finished(self, output: Any) -> Any:
        """Return what the pass returned, changed where it came before the moment."""
        if self._refused is not None:  # and the model went on
            raise self._refused
        with self.by_ourselves():
            # A single number has no samples, and is of no use to others any more.
            output = map_tensors(output, lambda tensor: self.read(tensor) if tensor.ndim else tensor)
            if self._change is not None and self._grad:
                self._audit(output)
        return output

    @contextmanager
    def by_ourselves(self) -> Iterator[None]:
        """Let what is done within the context read what it likes; to ask for a tensor's memory is to read it, too."""
        before, self.ours = self.ours, True
        try:
            yield
        finally:
            self.ours = before

    # What the modes see -----------------------------------------------------------------------------------------------

    def leaves_torch(self, how: str, given: Any) -> None:
        """Note that Python reads numbers."""
        with self.by_ourselves():
            if self._change is None and self._any_early(given):
                self._numbers = how

    def ran(self, operation: Any, given: Any, result: Any) -> None:
        """Follow what an operation made, and see that none reads what came before the moment afterwards."""
        with self.by_ourselves():
            if not self._any_early(given):
                return
            if self._change is not None:
                raise self._refusal("reads what was computed before the code unseen, as scripted code does")
            self.add((result, _written(operation, *given)))

    # Checking ---------------------------------------------------------------------------------------------------------

    def _is_early(self, tensor: Tensor) -> bool:
        return storage_of(tensor) in self._early

    def _any_early(self, tree: Any) -> bool:
        return any(self._is_early(tensor) for _, tensor in tensors_in(tree))

    def _check(self, tensor: Tensor) -> None:
        """See that a tensor has samples to mix, and that the backward pass will know of it."""
        shape = tuple(tensor.shape)
        if not is_differentiable(tensor) or tensor.layout is not torch.strided:
            kind = str(tensor.layout if is_differentiable(tensor) else tensor.dtype).removeprefix("torch.")
            raise self._refusal(f"reads, after the code, a tensor of {kind} of shape {shape} from before it")
        if not shape or shape[0] != self._batch:
            raise self._refusal(
                f"reads, after the code, a tensor of shape {shape} from before it, whose first axis is not the batch "
                f"of {self._batch}"
            )
        if self._grad and has_its_own_backward():
            raise self._refusal(
                "reads what was computed before the code in a part that is checkpointed, or in an autograd function "
                "of its own, whose backward pass would not see the change"
            )

    def _audit(self, output: Any) -> None:
        """See that no autograd function written in Python was given, or keeps, what came before the moment."""
        stack: list[Any] = [tensor.grad_fn for _, tensor in tensors_in(output)]
        seen: set[Any] = {None}
        while stack:
            node = stack.pop()
            if node in seen or node._sequence_nr() < self._moment:
                continue
            seen.add(node)
            parents = [parent for parent, _ in node.next_functions]
            if isinstance(node, BackwardCFunction) and (
                self._any_early(_kept(node))
                or any(parent is not None and parent._sequence_nr() < self._moment for parent in parents)
            ):
                raise self._refusal(f"gives {type(node).__name__} what was computed before the code")
            stack.extend(parents)

    def _refusal(self, why: str) -> CannotFollow:
        self._refused = CannotFollow(
            f"{self._model} {why}. A transform that changes a whole pass, as mixing samples does, cannot follow there. "
            "Tap another layer, or use a transform of the code alone."
        )
        return self._refused


# That rows are samples --------------------------------------------------------------------------------------------
_PROVED: weakref.WeakKeyDictionary[nn.Module, set[Hashable]] = weakref.WeakKeyDictionary()


def see_that_rows_are_samples(model: nn.Module, where: Hashable, inputs: Any, run: Callable[[Any], object]) -> None:
    """Run a pass over another number of samples, once: a first axis of another meaning shows, as it keeps its length.

    Tokens [N, B, C], for instance, could not be told from samples [B, N, C] where there are as many.

    Args:
        model: The model.
        where: What tells this use of the model from others.
        inputs: Arguments of the pass that is to be changed.
        run: Makes a pass, given other inputs, that changes nothing but refuses what cannot be changed.

    Raises:
        CannotFollow: Something that is read has another first axis, or the model takes no other number of samples.
    """
    batch = batch_of(inputs)
    if batch is None:
        return
    size = 2 if batch != 2 else 4
    key = where, size, tuple(module.training for module in submodules(model))
    proved = _PROVED.setdefault(model, set())
    if key in proved:
        return

    def resized(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if not tensor.ndim or len(tensor) != batch:
            return tensor.clone()
        return tensor[torch.arange(size, device=tensor.device) % batch]

    grad = torch.is_grad_enabled()
    with sandbox(model, device_of(model, *inputs)), torch.set_grad_enabled(grad):
        try:
            run(map_tensors(inputs, resized))
        except CannotFollow:
            raise
        except Exception as error:
            run(map_tensors(inputs, lambda tensor: tensor.detach().clone()))  # fails for itself if that is no reason
            raise CannotFollow(
                f"{type(model).__name__} fails on {size} samples in place of {batch}, which a transform that changes a "
                "whole pass takes to see which axis is the batch. Use a transform of the code alone."
            ) from error
    proved.add(key)


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let compiled code run as it was written, which shows what it reads."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and the import takes seconds
        yield
    elif hasattr(torch.compiler, "set_stance"):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:  # before PyTorch 2.6, it is so for those who trace by torch.fx
        tracing: Any = sys.modules["torch.fx._symbolic_trace"]
        before = tracing._is_fx_tracing_flag
        tracing._is_fx_tracing_flag = True
        try:
            with sys.modules["torch._dynamo"].config.patch(error_on_nested_fx_trace=False):
                yield
        finally:
            tracing._is_fx_tracing_flag = before


def has_its_own_backward() -> bool:
    """Tell whether activation checkpointing, or an autograd function written in Python, called us."""
    for frame in _callers():
        code = frame.f_code
        if code.co_filename == torch.utils.checkpoint.__file__:
            return True
        if code.co_argcount and isinstance(frame.f_locals.get(code.co_varnames[0]), FunctionCtx):
            return True
        if not torch.is_grad_enabled() and code.co_name == "forward" and code in _forwards(Function):
            return True  # one that gets its context later
    return False


def is_checkpointed() -> bool:
    """Tell whether activation checkpointing called us."""
    return any(frame.f_code.co_filename == torch.utils.checkpoint.__file__ for frame in _callers())


def _callers() -> Iterator[FrameType]:
    """Yield the frames of whoever called, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _forwards(kind: type[Function]) -> set[Any]:
    """Collect the code of all autograd functions written in Python."""
    own = {getattr(kind.forward, "__code__", None)}
    return own.union(*map(_forwards, kind.__subclasses__()))


def _constants(model: nn.Module) -> Iterator[int]:
    """Name memory that a pass may write to without reading it: weights, and statistics of normalisation layers."""
    for module in submodules(model):
        for weight in module._parameters.values():
            if weight is not None:
                yield storage_of(weight)
        for name, value in module._buffers.items():
            if value is not None and is_norm_statistic(module, name):
                yield storage_of(value)


def _hold(tensor: Tensor) -> object:
    """Keep the identity of a tensor's memory, but not the memory."""
    try:
        return StorageWeakRef(tensor.untyped_storage())
    except (NotImplementedError, RuntimeError):  # no memory of one piece
        return tensor


def _written(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes to."""
    written = []
    for position, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[position] if position < len(args) else kwargs.get(argument.name))
    return written


def _kept(node: Any) -> list[Any]:
    """Return what an autograd function written in Python keeps for its backward pass."""
    try:
        return [*node.saved_tensors, *vars(node).values()]
    except RuntimeError:  # changed in place since, as its backward pass will say
        return [*vars(node).values()]


_SHAPES = {"size", "dim", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "__len__"}
_NUMBERS = {"item", "tolist", "numpy", "__array__", "__float__", "__int__", "__index__", "__complex__", "__dlpack__"}


class _Reads(TorchFunctionMode):
    """Sees what is read as Python reads it, where autograd is yet to come."""

    def __init__(self, reads: ChangedReads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: Any = args, kwargs or {}
        if self._reads.ours:
            return function(*given[0], **given[1])
        name = getattr(function, "__name__", "")
        if name in _NUMBERS:
            self._reads.leaves_torch(name.strip("_"), given)
        if not self._reads.begun or name in _SHAPES:
            return function(*given[0], **given[1])
        if name == "__get__":  # an attribute: changed only where it is a tensor again
            with self._reads.by_ourselves():
                result = function(*given[0], **given[1])
            if not isinstance(result, Tensor):
                return result
        args, kwargs = map_tensors(given, self._reads.read)
        return function(*args, **kwargs)


class _Guard(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation, whoever calls it."""

    def __init__(self, reads: ChangedReads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reads = reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self._reads.ours:
            self._reads.ran(function, (args, kwargs or {}), result)
        return result
