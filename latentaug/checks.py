"""Checks of arguments where they come in: each names the argument, what came, and what would do."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_PACKAGE = Path(__file__).parent


def whole(name: str, value: object, *, least: int = 1, of: str = "") -> int:
    """Check a whole number.

    Raises:
        ValueError: It is none, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number{of and f' of {of}'}, {least} or more; got {shown(value)}.")
    return value


def number(name: str, value: object, *, above: float = -math.inf, least: float = -math.inf) -> float:
    """Check a finite number.

    Raises:
        TypeError: It is none.
        ValueError: It is not finite, not above `above`, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {shown(value)}.")
    result = float(value)
    if not (math.isfinite(result) and result > above and result >= least):
        bound = f" above {above:g}" if above > -math.inf else f", {least:g} or more" if least > -math.inf else ""
        raise ValueError(f"{name} must be a finite number{bound}; got {value}.")
    return result


def flag(name: str, value: object) -> bool:
    """Check a switch.

    Raises:
        TypeError: It is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {shown(value)}.")
    return value


def file_path(name: str, value: object) -> Path:
    """Check the path of a file or folder.

    Raises:
        TypeError: It is none.
        ValueError: It is empty.
    """
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, a str or a pathlib.Path; got {shown(value)}.")
    if not str(value):
        raise ValueError(f"{name} must be a path; got ''. Write '.' for the working folder.")
    return Path(value)


def function(name: str, value: object) -> None:
    """See that a callable is one, where there is one.

    Raises:
        TypeError: It is something else.
    """
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable; got {shown(value)}.")


def ignored_label(value: object) -> None:
    """See that `ignore_index` may be a label.

    Raises:
        TypeError: It is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"ignore_index must be a whole number, a label; got {shown(value)}.")


def random_source(value: object) -> None:
    """See that a generator is one.

    Raises:
        TypeError: It is something else.
    """
    if value is not None and not isinstance(value, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None; got {shown(value)}. Write torch.Generator().manual_seed(0)."
        )


def tensor(name: str, value: object, *, who: str) -> Tensor:
    """Check a floating-point tensor.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(value, Tensor):
        hint = " Use torch.as_tensor on it." if type(value).__module__ == "numpy" else ""
        raise TypeError(f"{who} needs a tensor as {name}; got {shown(value)}.{hint}")
    if not value.is_floating_point():
        hint = "Pass features, not labels." if name == "code" else f"Write {name}.float(), scaled as in training."
        article = "" if name == "images" else "a "
        raise TypeError(f"{who} needs {article}floating-point {name}; got {value.dtype}. {hint}")
    return value


def module(name: str, value: object, *, who: str) -> nn.Module:
    """Check a network.

    Raises:
        TypeError: It is none, or a class.
    """
    if isinstance(value, nn.Module):
        return value
    hint = " Pass an instance." if isinstance(value, type) else ""
    raise TypeError(f"{who} needs `{name}` to be a torch.nn.Module; got {shown(value)}.{hint}")


def scalar(name: str, value: object, *, who: str) -> Tensor:
    """Check a loss; one of shape [1] is made a scalar.

    Raises:
        TypeError: It is no tensor of real numbers.
        ValueError: It is no scalar.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{who} needs {name} to be a scalar tensor with a graph; got {shown(value)}.")
    if value.numel() != 1:
        raise ValueError(f"{who} needs {name} to be a scalar; got shape {tuple(value.shape)}. Take its mean.")
    if not value.is_floating_point():
        raise TypeError(f"{who} needs {name} to be a scalar tensor of real numbers with a graph; got {value.dtype}.")
    return value if value.ndim == 0 else value.reshape(())


@contextmanager
def called_on_example(who: str, model: nn.Module, example: Any) -> Iterator[None]:
    """Say of what a model raises in a dry run that it was called on the caller's example.

    Raises:
        RuntimeError: The model could not be called on it.
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__ != "builtins" or _is_ours(error):  # a user's own kinds of errors are theirs
            raise
        raise RuntimeError(
            f"{who} calls {type(model).__name__} on `example`, {described(example)}, which raised "
            f"{type(error).__name__}: {error} Pass a batch of inputs as the model takes them: for images "
            "floating-point, [B, C, *S], on the model's device."
        ) from error


def _is_ours(error: BaseException) -> bool:
    """Tell whether this library raised an error, and not what it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and _PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents


def described(value: object) -> str:
    """Describe inputs in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype} on {value.device}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def shown(value: object) -> str:
    """Show what came in a few words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return described(value)
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
