"""Where a code is: what a user may call a layer, and the submodule and the path that it stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

from latentaug.layout import Layout
from latentaug.tracing.infer_layout import grid_of, infer_layout
from latentaug.tracing.intercept import is_compiled
from latentaug.tracing.isolation import sandbox
from latentaug.tracing.record import Call, record
from latentaug.tracing.tree import Path, item_at, map_tensors, tensors_in

_WRAPPER = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)(?=\.|$)")


class _Location(NamedTuple):
    name: str
    index: Path  # type: ignore[assignment]  # the contract's name hides tuple.index, which nobody needs here
    layout: Layout
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Location(_Location):
    """Where a latent code is, and what it looks like.

    Args:
        name: Dotted name of the submodule that returns the code; "" is the model itself.
        index: Path into what it returns: (), (5,) or ("out",).
        layout: Where the channels are, and how many tokens are no spatial positions.
        shape: Shape of the code, [B, C, *S] or another layout.
        stride: Input pixels per spatial position, one for each spatial axis.

    Example:
        >>> print(Location("encoder", (5,), Layout(1), (2, 512, 2, 2), (32, 32)))
        encoder[5]
    """

    __slots__ = ()

    def __str__(self) -> str:
        return self.name + "".join(f"[{key!r}]" for key in self.index)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of spatial positions along each axis of the image that the code came from."""
        return grid_of(self.shape, self.layout)


# Layers -----------------------------------------------------------------------------------------------------------
def unwrap(model: nn.Module) -> nn.Module:
    """Return the model that `torch.compile`, DistributedDataParallel or a one-device DataParallel wraps.

    Raises:
        TypeError: The model is scripted or traced, or replicated over several devices.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` needs to be a torch.nn.Module; got {type(model).__name__}.")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"`model` is compiled by torch.jit ({type(model).__name__}), whose submodules are never called from Python "
            "and so have no code to tap. Pass the original module; scripted submodules are fine."
        )
    if isinstance(model, nn.DataParallel):
        if len(model.device_ids) > 1:
            raise TypeError(
                f"`model` is a DataParallel over {len(model.device_ids)} devices, whose replicas cannot be tapped. "
                "Use DistributedDataParallel, or pass model.module."
            )
        return unwrap(model.module)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    original = getattr(model, "_orig_mod", None)
    return unwrap(original) if is_compiled(model) and isinstance(original, nn.Module) else model


def find_spot(model: nn.Module, layer: str | nn.Module | Location) -> tuple[str, Path | None]:
    """Turn what a user calls a layer into a submodule's name and a path; the path is None where none was given.

    Raises:
        ValueError: There is no such submodule; the error names the closest.
        TypeError: `layer` is something else.
    """
    if isinstance(layer, Location):
        return find_spot(model, layer.name)[0] if layer.name else "", layer.index
    if isinstance(layer, nn.Module):
        found = next((name for name, module in model.named_modules() if module is layer), None)
        if found is None:
            raise ValueError(
                f"LatentTap needs a submodule of {type(model).__name__}; got another {type(layer).__name__}."
            )
        return found, None
    if not isinstance(layer, str):
        raise TypeError(f"`layer` needs a dotted name, a module, a Location or None; got {type(layer).__name__}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    name, path = layer, None
    if name not in modules and (match := re.fullmatch(r"(.*?)((?:\[[^\[\]]+\])+)", layer)):
        name, path = match[1], tuple(_key(text) for text in re.findall(r"\[([^\[\]]+)\]", match[2]))
    if name not in modules:
        bare = {_bare(real): real for real in modules}
        name = bare.get(_bare(name), name)
    if name not in modules:
        close = difflib.get_close_matches(name, list(filter(None, bare)), n=3, cutoff=0.3)
        hint = f"; closest: {', '.join(map(repr, close))}" if close else ""
        raise ValueError(
            f"LatentTap found no submodule {name!r} in {type(model).__name__}{hint}. "
            "Pass one of its names, or the module itself."
        )
    return next(real for real, module in modules.items() if module is modules[name]), path


def _bare(name: str) -> str:
    """Leave out what wrappers put into a name."""
    return _WRAPPER.sub("", name).strip(".")


def _key(text: str) -> Any:
    text = text.strip()
    return int(text) if re.fullmatch(r"-?\d+", text) else text.strip("'\"")


def spot_in(name: str, path: Path | None, output: Any) -> Spot:
    """Complete a layer that was given without an index from what the module returned.

    Raises:
        ValueError: There is no tensor at the path, or several where none was said.
    """
    if path is not None:
        path = tuple(path)
        try:
            found = item_at(output, path)
        except (KeyError, IndexError, AttributeError, TypeError):
            found = None
        if isinstance(found, Tensor):
            return Spot(name, next(p for p, tensor in tensors_in(output) if tensor is found))
    tensors = list(tensors_in(output))
    if path is None and len(tensors) == 1:
        return Spot(name, tensors[0][0])
    options = ", ".join(f"'{name}{''.join(f'[{key!r}]' for key in p)}' {tuple(t.shape)}" for p, t in tensors[:12])
    asked = name + "".join(f"[{key!r}]" for key in path or ())
    raise ValueError(
        f"LatentTap needs one tensor, and {asked!r} is {'not one' if path else 'several'}: {name!r} returns "
        f"{options or 'no tensor'}. Pass one of these."
    )


def complete_spots(
    model: nn.Module,
    targets: Sequence[tuple[str, Path | None]],
    call: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[Spot, tuple[int, ...]]:
    """Look in a dry run at what the target modules return, complete the paths left open, and tell the codes' shapes.

    The run is of two samples; the shapes are those of the whole batch.

    Raises:
        ValueError: A target returns no tensor at its path, several where none was said, or is not called so often.
        RuntimeError: A target is not called at all, or within `torch.func.vmap`.
    """
    names = frozenset(name for name, _ in targets)

    def recorded(inputs: Any) -> Call:
        args, kwargs = inputs
        return record(model, lambda: model(*args, **kwargs), inside=names)[0]

    with sandbox(model, device_of(model, args, kwargs)):
        batch, few = batch_of((args, kwargs)), first_samples((args, kwargs), few_samples(model))
        seen = batch_of(few)
        try:
            trace = recorded(few)
        except Exception:  # a model that insists on the batch it was called with; if it fails again, so be it
            trace, seen = recorded(first_samples((args, kwargs), None)), batch
    spots: dict[Spot, tuple[int, ...]] = {}
    for name, path in targets:
        calls = [entry for entry in trace.walk() if entry.name == name]
        if not calls:
            if (inside := _scripted_around(model, name)) is not None:
                raise RuntimeError(
                    f"LatentTap cannot see {name!r}: {inside!r} around it was made by torch.jit.script or trace, and "
                    "calls none of its parts through Python. Tap it as a whole, or leave it unscripted."
                )
            raise RuntimeError(
                f"LatentTap: {name!r} is not called in a forward pass of {type(model).__name__}, so it has no code to "
                "tap. Pass a module that is called in every pass, in train mode too."
            )
        if not -len(calls) <= call < len(calls):
            raise ValueError(f"LatentTap needs `call` within the {len(calls)} calls of {name!r}; got {call}.")
        spot = spot_in(name, path, calls[call].output)
        if spot in spots:
            raise ValueError(f"LatentTap needs different layers; got {name!r} twice.")
        code = item_at(calls[call].output, spot.path)
        if is_batchedtensor(code):
            raise RuntimeError(
                f"LatentTap cannot tap {name!r}, which {type(model).__name__} calls within torch.func.vmap: its code "
                "hides an axis there. Tap a module around that call, or one outside."
            )
        shape = tuple(code.shape)
        per_sample = seen and batch and shape and shape[0] % seen == 0
        spots[spot] = (shape[0] // seen * batch, *shape[1:]) if per_sample else shape
    return spots


def layout_of(
    name: str, shape: tuple[int, ...], image: tuple[int, ...]
) -> tuple[Layout, tuple[int, ...], tuple[int, ...]]:
    """Read layout, shape and stride of a code off its shape and that of the image.

    Raises:
        ValueError: They don't tell.
    """
    if 0 in (*shape, *image):
        raise ValueError(
            f"LatentTap cannot tell channels from sites in a code {shape} of an image {image}, taken at {name!r}: one "
            "of them is empty. Pass at least one sample."
        )
    fit = infer_layout(shape, image)
    if fit is None:
        raise ValueError(
            f"LatentTap cannot tell channels from sites in a code {shape} of an image {image}, taken at "
            f"{name!r}. Pass layer=Location(name, index, layout, shape, stride) to say which is which."
        )
    return fit[0], shape, fit[1]


def compiled_wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that `torch.compile` has put around a model."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        if is_compiled(inner) and "_orig_mod" in inner._modules:
            yield inner
            inner = inner._orig_mod
        else:
            inner = inner.module if isinstance(inner, nn.DataParallel | nn.parallel.DistributedDataParallel) else None


# Inputs -----------------------------------------------------------------------------------------------------------
def image_in(inputs: Any) -> Tensor | None:
    """Return the image among a model's inputs: the first tensor [B, C, *S] of most axes, better one of floats."""
    images = [tensor for _, tensor in tensors_in(inputs) if tensor.ndim >= 3]
    return max(images, key=lambda image: (image.ndim, image.is_floating_point()), default=None)


def few_samples(model: nn.Module) -> int | None:
    """Return how many samples a dry run takes: two, as batch normalisation needs; or all, not to compile again."""
    return None if any(map(is_compiled, model.modules())) else 2


def batch_of(inputs: Any) -> int | None:
    """Return the number of samples among a model's inputs: of the image, or else of the first tensor of floats."""
    image = image_in(inputs)
    batched = [image] if image is not None else [t for _, t in tensors_in(inputs) if t.is_floating_point() and t.ndim]
    return batched[0].shape[0] if batched else None


def first_samples(inputs: Any, size: int | None) -> Any:
    """Copy a model's inputs, of a batch the first samples only; None copies all.

    Example:
        >>> args, kwargs = first_samples(((torch.rand(8, 1, 16, 16),), {"ages": torch.rand(8)}), 2)
        >>> args[0].shape, kwargs["ages"].shape
        (torch.Size([2, 1, 16, 16]), torch.Size([2]))
    """
    batch = batch_of(inputs)

    def cut(tensor: Tensor) -> Tensor:
        part = tensor.detach()[:size] if tensor.ndim and tensor.shape[0] == batch else tensor.detach()
        return part.clone().requires_grad_(tensor.requires_grad)

    return map_tensors(inputs, cut)


def resized(inputs: Any, size: Sequence[int]) -> Any:
    """Copy a model's inputs, with images, and what else has their size, at another size.

    Example:
        >>> (image,), _ = resized(((torch.rand(2, 1, 16, 24),), {}), (8, 12))
        >>> image.shape
        torch.Size([2, 1, 8, 12])
    """
    image = image_in(inputs)

    def resize(tensor: Tensor) -> Tensor:
        if image is None or tensor.shape[2:] != image.shape[2:]:
            return tensor.detach().clone().requires_grad_(tensor.requires_grad)
        small = nn.functional.interpolate(tensor.detach().float(), size=tuple(size)).to(tensor.dtype)
        return small.requires_grad_(tensor.requires_grad)

    return map_tensors(inputs, resize)


def as_inputs(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read `example` as the arguments of a call: a tensor is the only one, a tuple holds them, a dict names them."""
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, dict):
        return (), {str(key): value for key, value in example.items()}
    raise TypeError(
        f"`example` needs a tensor, or a tuple or dict of the model's inputs; got {type(example).__name__}."
    )


class Spot(NamedTuple):
    """Where a code is: a submodule's name, and the path into what it returns."""

    name: str
    path: Path


def device_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Return the device that a call of the model runs on."""
    tensor = next((t for _, t in tensors_in((args, kwargs))), None)
    tensor = next(model.parameters(), tensor) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


def _scripted_around(model: nn.Module, name: str) -> str | None:
    """Name the scripted module that a submodule lies in, if it does."""
    parts = name.split(".")
    for end in range(len(parts)):
        if isinstance(model.get_submodule(path := ".".join(parts[:end])), torch.jit.ScriptModule):
            return path or type(model).__name__
    return None
