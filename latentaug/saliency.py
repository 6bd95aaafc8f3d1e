"""Saliency of a latent code: the gradient of a task loss with respect to it, signed."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from latentaug.discovery import bottleneck
from latentaug.locations import Location, find_spot, spot_in, unwrap
from latentaug.trace import item_at, map_tensors

# Gradients of a code are around 1e-5, where float16 has few digits left. A power of two changes no digit.
_HALF_SCALE = 2.0**12


@overload
def latent_saliency(loss: Tensor, code: Tensor) -> Tensor: ...
@overload
def latent_saliency(loss: Tensor, code: Sequence[Tensor]) -> list[Tensor]: ...
def latent_saliency(loss: Tensor, code: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
    """Differentiate a task loss by a latent code.

    Keeps the graph, so that the loss can be backpropagated afterwards, and touches no `.grad`. For float16 codes the
    loss is scaled up before and the result divided in float32.

    Args:
        loss: A scalar that depends on the code: reconstruction loss for an image code, segmentation loss for a shape
            code (section 2.2 of the paper).
        code: The code, live in the loss's graph, such as `tap.code`; or a list of codes.

    Shape:
        code: any.   result: the code's; a list for a list.

    Raises:
        RuntimeError: The loss has no graph, does not depend on the code, or its graph does not allow the derivative.
        ValueError: The loss is not a scalar.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079, section 2.2 (targeted masking).

    Example:
        >>> code = torch.tensor([[1.0, -2.0]], requires_grad=True)
        >>> latent_saliency((code**2).sum(), code)
        tensor([[ 2., -4.]])
    """
    codes = [code] if isinstance(code, Tensor) else list(code)
    if loss.numel() != 1:
        raise ValueError(f"latent_saliency needs a scalar `loss`; got shape {tuple(loss.shape)}. Pass loss.mean().")
    if not loss.requires_grad:
        raise RuntimeError(
            "latent_saliency needs a `loss` with a graph; got one that requires no gradient. "
            "Run the forward pass outside torch.no_grad()."
        )
    half = any(one.dtype == torch.float16 for one in codes)
    scaled = loss.float() * _HALF_SCALE if half else loss
    try:
        gradients = torch.autograd.grad(scaled, codes, retain_graph=True)
    except RuntimeError as error:
        raise RuntimeError(f"latent_saliency cannot differentiate `loss` by `code`. {_remedy(str(error))}") from error
    result = [gradient.float() / _HALF_SCALE if half else gradient for gradient in gradients]
    return result[0] if isinstance(code, Tensor) else result


def _remedy(message: str) -> str:
    if "use_reentrant" in message or "heckpoint" in message:
        return "The model uses reentrant activation checkpointing: pass use_reentrant=False to torch.utils.checkpoint."
    if "appears to not have been used" in message or "does not require grad" in message:
        return (
            "The loss does not depend on it: pass tap.code itself, of the very pass that the loss was computed from, "
            "and see that the model does not cut the graph behind it (detach, no_grad, reentrant checkpointing)."
        )
    if "second time" in message:
        return "The graph was freed by a backward pass: take the saliency before loss.backward()."
    return message


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

    def __init__(self, model: nn.Module, layer: str | nn.Module | Location | None = None):
        self._model = unwrap(model)
        self._code: Tensor | None = None
        self._path: tuple[Any, ...] | None = None
        self._handles: list[RemovableHandle] = []
        if layer is None:
            hook = _Hook(self._find)
            self._handles.append(self._model.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            name, self._path = find_spot(self._model, layer)
            self._attach(name)

    @property
    def code(self) -> Tensor:
        """What the layer last returned, live in the graph."""
        if self._code is None:
            raise RuntimeError("SaliencyCalculator needs a forward pass of the model first.")
        return self._code

    def __call__(self, loss: Tensor) -> Tensor:
        """Return the gradient of `loss` with respect to the layer's last output; see `latent_saliency`."""
        return latent_saliency(loss, self.code)

    def remove(self) -> None:
        """Take every hook off the model, and let go of the code."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._code = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _attach(self, name: str) -> None:
        self._name = name
        self._handles.append(self._model.get_submodule(name).register_forward_hook(_Hook(self._keep)))

    def _find(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for handle in self._handles:
            handle.remove()
        location = bottleneck(self._model, args, kwargs)
        self._path = location.index
        self._attach(location.name)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self._path = spot_in(self._name, self._path, output).path
        found = item_at(output, self._path)
        code = found
        if not found.requires_grad and found.is_floating_point() and torch.is_grad_enabled():
            code = found.detach().requires_grad_()
        self._code = code
        # What runs on is a copy, so that an in-place activation behind the layer leaves the kept code as it was.
        return map_tensors(output, lambda tensor: code.clone() if tensor is found else tensor)


class _Hook:
    """A hook that stays behind when its model is copied or pickled: the copy would report to the original's owner."""

    def __init__(self, function: Any = None):
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return None if self._function is None else self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        return _Hook()

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
