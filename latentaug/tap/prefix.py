"""A pass that ends at a code: what precedes it, and nothing of what follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from latentaug.tap.capture import modules_down_to
from latentaug.tap.plan_cache import cache_of
from latentaug.tracing.intercept import is_compiled, overridden
from latentaug.tracing.location import Location, unwrap
from latentaug.tracing.tree import item_at


class _Reached(BaseException):
    """Ends a pass; no Exception, so that no model takes it for one."""

    def __init__(self, code: Tensor) -> None:
        self.code = code


def code_of(model: nn.Module, location: Location, *args: Any, **kwargs: Any) -> Tensor:
    """Run a model up to a code, and return it.

    Modes, gradients and statistics are those of the context. Where the layer is called several times in a pass, the
    code is that of the first call.

    Args:
        model: Any model, also wrapped.
        location: Where the code is, such as `find_codes` returns.
        *args: What the model is called with.
        **kwargs: The same.

    Raises:
        RuntimeError: The pass does not come to the layer.

    Example:
        >>> import torch
        >>> from latentaug import find_bottleneck
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2))
        >>> images = torch.rand(2, 1, 16, 16)
        >>> code_of(model, find_bottleneck(model, images), images).shape
        torch.Size([2, 8, 8, 8])
    """
    root = unwrap(model)

    def handle(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = original(*args, **kwargs)
        if name == location.name:
            raise _Reached(item_at(output, location.index))
        return output

    # Compiled code around the layer would not see what stands in for it.
    above = {name: one for name, one in modules_down_to(root, location.name) if is_compiled(one)}
    with overridden({**above, location.name: root.get_submodule(location.name)}, handle), cache_of(root).ours():
        try:
            root(*args, **kwargs)
        except _Reached as reached:
            return reached.code
    raise RuntimeError(f"{type(root).__name__} was called, and did not come to its layer {location.name!r}.")
