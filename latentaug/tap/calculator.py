"""Saliency of a layer's output, for training loops that want no `with` block around the model."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from latentaug.discovery.bottleneck import bottleneck
from latentaug.saliency import latent_saliency
from latentaug.tap.plan_cache import cache_of
from latentaug.tracing.compiled import uncompiled
from latentaug.tracing.intercept import is_compiled, stand_in
from latentaug.tracing.location import Location, compiled_wrappers, find_spot, spot_in, unwrap
from latentaug.tracing.own_passes import depth_of
from latentaug.tracing.tree import item_at, map_tensors, storage_of, tensors_in, version_of


class SaliencyCalculator:
    """Saliency of a layer's output for training loops that want no `with` block around the model.

    Registers on a layer, keeps what it last returned, and differentiates a loss by that.

    Args:
        model: Any `nn.Module`.
        layer: A dotted name with an index where needed ("encoder[5]"), a module or a `Location`. Default None: the
            bottleneck, found on the model's first call.

    Raises:
        RuntimeError: Called before the model was.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
        >>> calculator = SaliencyCalculator(model, "0")
        >>> logits = model(torch.randn(1, 1, 8, 8))
        >>> calculator(logits.mean()).shape
        torch.Size([1, 4, 4, 4])
        >>> calculator.remove()
    """

    @uncompiled
    def __init__(self, model: nn.Module, layer: str | nn.Module | Location | None = None):
        self._model = unwrap(model)
        self._code: Tensor | None = None
        self._version: int | None = None
        self._path: tuple[Any, ...] | None = None
        self._handles: list[RemovableHandle] = []
        self._undo = self._uncompiled(model)
        if layer is None:
            hook = _Hook(self._find)
            self._handles.append(self._model.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            name, self._path = find_spot(self._model, layer)
            self._attach(name)

    @property
    @uncompiled
    def code(self) -> Tensor:
        """What the layer last returned, live in the graph."""
        if self._code is None:
            raise RuntimeError("SaliencyCalculator needs a forward pass of the model first.")
        if self._version not in (None, version_of(self._code)):
            raise RuntimeError(
                f"SaliencyCalculator cannot keep what {self._name!r} returned: it is the very memory that the layer "
                "was given, and was changed in place later. Take the layer before it."
            )
        return self._code

    @uncompiled
    def __call__(self, loss: Tensor) -> Tensor:
        """Return the gradient of `loss` with respect to the layer's last output; see `latent_saliency`."""
        return latent_saliency(loss, self.code)

    @uncompiled
    def remove(self) -> None:
        """Take every hook off the model, and let go of the code."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._undo()
        self._code = None

    @uncompiled
    def __enter__(self) -> Self:
        return self

    @uncompiled
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _uncompiled(self, model: nn.Module) -> Callable[[], None]:
        """Let a model that is compiled as a whole run uncompiled: compiled code ignores hooks that come late."""
        compiled = [*compiled_wrappers(model), *([self._model] if is_compiled(self._model) else [])]
        modules = {f"wrapper {i}": module for i, module in enumerate(compiled)}
        return stand_in({**modules, "": self._model}, _call) if modules else lambda: None

    def _attach(self, name: str) -> None:
        self._name = name
        self._handles.append(self._model.get_submodule(name).register_forward_hook(_Hook(self._keep)))

    def _is_our_own_pass(self) -> bool:
        return depth_of(self._model) > 0 or cache_of(self._model).busy

    def _find(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_our_own_pass():  # such as a dry run of another one that is looking too
            return
        for handle in self._handles:
            handle.remove()
        location = bottleneck(self._model, args, kwargs)
        self._path = location.index
        self._attach(location.name)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self._is_our_own_pass():
            return None
        self._path = spot_in(self._name, self._path, output).path
        found = item_at(output, self._path)
        code = found
        if not found.requires_grad and found.is_floating_point() and torch.is_grad_enabled():
            code = found.detach().requires_grad_()
        self._code, self._version = code, None
        if code is found and storage_of(found) in {storage_of(tensor) for _, tensor in tensors_in(args)}:
            # Changes of a copy would not be seen where this memory is held too; those of a view are.
            self._code = view = found.view_as(found)
            self._version = version_of(view)
            return map_tensors(output, lambda tensor: view if tensor is found else tensor)
        # What runs on is a copy, so that an in-place activation behind the layer leaves the kept code as it was.
        return map_tensors(output, lambda tensor: code.clone() if tensor is found else tensor)


def _call(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return original(*args, **kwargs)


class _Hook:
    """A hook that stays behind when its model is copied or pickled: the copy would report to the original's owner."""

    def __init__(self, function: Any = None):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        if torch.compiler.is_compiling():  # what is kept must be a tensor, and no stand-in of the compiler's
            return import_module("torch._dynamo").disable(self._call)(*args)
        return self._call(*args)

    def _call(self, *args: Any) -> Any:
        return None if self._function is None else self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
