"""Compiling a cooperative model: part by part, as its step calls parts of the network by themselves."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from latentaug.tracing.compiled import compile_as, compiler_of, uncompiled, untapped_parts
from latentaug.tracing.intercept import is_compiled
from latentaug.tracing.location import unwrap

if TYPE_CHECKING:
    from latentaug.cooperative.model import CooperativeModel

logger = logging.getLogger("latentaug")


def parts_of(model: CooperativeModel) -> dict[str, nn.Module]:
    """Name the largest parts of the network that hold no tapped layer, and the heads."""
    tapped = [location.name for location in (model.image_code, *model.shape_codes) if location is not None]
    heads = {"reconstruction_head": model.reconstruction_head, "shape_prior": model.shape_prior}
    parts = dict(untapped_parts(unwrap(model.model), tapped))
    return {f"model.{name}".rstrip("."): part for name, part in parts.items()} | {
        name: head for name, head in heads.items() if head is not None
    }


def compile_parts(model: CooperativeModel, whole: nn.Module) -> None:
    """Compile the parts of a model as a whole was compiled that is tapped within, and say so once."""
    compiler, parts = compiler_of(whole), parts_of(model)
    if compiler is None or all(map(is_compiled, parts.values())):
        return
    for part in parts.values():
        compile_as(part, compiler)
    logger.info(
        "%s is compiled as a whole, and tapped within. In training it runs as it is written, but for these parts, "
        "which are compiled each by itself: %s.",
        type(unwrap(whole)).__name__,
        ", ".join(parts),
    )


@uncompiled
def tell_of_compiling(model: CooperativeModel) -> None:
    """Say once to whoever compiles calls of a model from outside that nothing of it is compiled so."""
    if not model.told_of_compiling and not any(map(is_compiled, parts_of(model).values())):
        logger.warning(
            "torch.compile can't trace a CooperativeModel, whose step runs as it is written. Call coop.compile(...) in "
            "its place, which compiles the network and the heads part by part."
        )
    model.told_of_compiling = True


def opened(model: nn.Module) -> nn.Module:
    """Return a `CooperativeModel` that was compiled as a whole, with its parts compiled so; others as they are."""
    original: Any = getattr(model, "_orig_mod", None)
    if not is_compiled(model) or not hasattr(original, "has_second_stage"):
        return model
    compile_parts(original, model)
    return cast(nn.Module, original)
