"""Arguments of before version 0.1.0 that have moved: they work until 0.2.0, and say what to write."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec

from latentaug.cooperative.hard_examples import HardExamples

P = ParamSpec("P")

IN_HARD = {
    "input_noise": "noise",
    "details": "residual",
    "hard_share": "fraction",
    "hard_scale": "scale",
    "saliency_every": "saliency_every",
    "hard_norm_frozen": "frozen_norms",
    "separate": "separate",
}
"""What has become a field of `HardExamples`, by its former name."""

SPELLINGS = {
    "layer": "codes=layer",
    "image_code": 'codes={"image": layer}',
    "shape_code": 'codes={"shape": layer}',
    "masker": "augment=transform",
    "temperature": "shape_prior=ShapePrior(num_classes, temperature=...)",
    "checkpointed": "coop.checkpointed = names, after making it",
    **{old: f"hard=HardExamples({new}=...)" for old, new in IN_HARD.items()},
}
"""How to write what has moved."""


def accepts_moved_arguments(init: Callable[P, None]) -> Callable[P, None]:
    """Let a constructor take what has moved, with a `DeprecationWarning` that says the new spelling."""

    @functools.wraps(init)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        moved = {name: kwargs.pop(name) for name in SPELLINGS if name in kwargs}
        for name in moved:
            warnings.warn(
                f"CooperativeModel({name}=...) has moved since 0.1.0, and goes with 0.2.0. Write {SPELLINGS[name]}.",
                DeprecationWarning,
                stacklevel=2,
            )
        kwargs.update(_translated(moved, kwargs))
        init(*args, **kwargs)
        model: Any = args[0]
        if "temperature" in moved and model.shape_prior is not None:
            model.shape_prior.temperature = moved["temperature"]
        if "checkpointed" in moved:
            model.checkpointed = moved["checkpointed"]

    return wrapper


def _translated(moved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that stand for those that have moved."""
    new: dict[str, Any] = {}
    fields = {IN_HARD[name]: value for name, value in moved.items() if name in IN_HARD}
    if fields:
        try:
            new["hard"] = HardExamples(**{**vars(given.get("hard", HardExamples())), **fields})
        except (TypeError, ValueError) as error:
            raise type(error)(f"{', '.join(name for name in moved if name in IN_HARD)}: {error}") from None
    if moved.get("masker") is not None:
        new["augment"] = moved["masker"]
    both = moved.get("layer")
    codes = {key: moved.get(f"{key}_code") or both for key in ("image", "shape")}
    if any(code is not None for code in codes.values()):
        new["codes"] = {key: code for key, code in codes.items() if code is not None}
    return new
