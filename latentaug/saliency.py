"""Saliency of a latent code: the gradient of a task loss with respect to it, signed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from latentaug.checks import scalar, shown

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
        code: any.   result: the code's; a list for a list. Of its dtype; with a float16 code among them, all float32.

    Raises:
        TypeError: The code is neither a tensor nor a list of them, or the loss no tensor of real numbers.
        RuntimeError: The loss has no graph, does not depend on the code, or its graph does not allow the derivative.
        ValueError: The loss is not a scalar, or the list of codes is empty.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079, section 2.2 (targeted masking).

    Example:
        >>> code = torch.tensor([[1.0, -2.0]], requires_grad=True)
        >>> latent_saliency((code**2).sum(), code)
        tensor([[ 2., -4.]])
    """
    given: Any = code
    codes: list[Tensor] = list(given) if isinstance(given, list | tuple) else [given]
    if not codes:
        raise ValueError("latent_saliency needs one `code` at least; got an empty list.")
    for one in codes:
        if not isinstance(one, Tensor):
            raise TypeError(f"latent_saliency needs a `code`, a tensor or a list of them; got {shown(one)}.")
    scalar("`loss`", loss, who="latent_saliency")
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
