"""A pass that ends at a code: what precedes it, and nothing of what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from latentaug.tap.capture import modules_down_to
from latentaug.tap.plan_cache import cache_of
from latentaug.tracing.intercept import is_compiled, overridden
from latentaug.tracing.isolation import sandbox
from latentaug.tracing.location import Location, device_of, unwrap
from latentaug.tracing.tree import item_at


class _Reached(BaseException):
    """Ends a pass; no Exception, so that no model takes it for one."""

    def __init__(self, code: Tensor) -> None:
        self.code = code


def code_of(model: nn.Module, location: Location, *args: Any, call: int = 0, **kwargs: Any) -> Tensor:
    """Run a model up to a code, and return it.

    Modes, gradients and statistics are those of the context.

    Args:
        model: Any model, also wrapped.
        location: Where the code is, such as `find_codes` returns.
        *args: What the model is called with.
        call: Which of the layer's calls in a pass to take the code of; the first is 0.
        **kwargs: The same as `args`.

    Raises:
        RuntimeError: The pass does not come to the layer, or not as often.

    Example:
        >>> import torch
        >>> from latentaug import find_bottleneck
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 2, 2, 2))
        >>> images = torch.rand(2, 1, 16, 16)
        >>> code_of(model, find_bottleneck(model, images), images).shape
        torch.Size([2, 8, 8, 8])
    """
    root, seen = unwrap(model), 0

    def returned(output: Any) -> None:
        nonlocal seen
        if seen == call:
            raise _Reached(item_at(output, location.index))
        seen += 1

    with _watched(root, location.name, returned):
        try:
            root(*args, **kwargs)
        except _Reached as reached:
            return reached.code
    again = f" more than {seen} times" if seen else ""
    raise RuntimeError(f"{type(root).__name__} was called, and did not come to its layer {location.name!r}{again}.")


def calls_in(model: nn.Module, name: str, *args: Any, **kwargs: Any) -> int:
    """Count how often a model calls one of its layers in a pass, of which nothing is left.

    Args:
        model: Any model, also wrapped.
        name: The layer.
        *args: What the model is called with.
        **kwargs: The same.

    Example:
        >>> import torch
        >>> shared = nn.Conv2d(1, 1, 1)
        >>> calls_in(nn.Sequential(shared, nn.ReLU(), shared), "0", torch.rand(2, 1, 8, 8))
        2
    """
    root, outputs = unwrap(model), list[Any]()
    with sandbox(root, device_of(root, args, kwargs)), _watched(root, name, outputs.append), torch.no_grad():
        root(*args, **kwargs)
    return len(outputs)


@contextmanager
def _watched(root: nn.Module, layer: str, returned: Callable[[Any], None]) -> Iterator[None]:
    """Hand over what a layer returns, in passes that are none of the user's."""

    def handle(name: str, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = original(*args, **kwargs)
        if name == layer:
            returned(output)
        return output

    # Compiled code around the layer would not see what stands in for it.
    above = {name: one for name, one in modules_down_to(root, layer) if is_compiled(one)}
    with overridden({**above, layer: root.get_submodule(layer)}, handle), cache_of(root).ours():
        yield
