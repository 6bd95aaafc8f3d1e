"""What of a model's output it is there for: what is named logits, or else all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from latentaug.tracing.tree import children_of, tensors_in

NAMES = ("out", "logits")
"""What logits are called in the outputs of torchvision's models, and of those of transformers."""

_AUXILIARY = "aux"  # what outputs of further heads are called beside them


def predictions_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output that are predictions: of those with names, "out" or "logits", and auxiliary ones.

    Where nothing has such a name, all are. What stands beside them is how the model came there, such as what an encoder
    returned.

    Example:
        >>> import torch
        >>> output = {"logits": torch.zeros(1, 2, 8, 8), "encoder_output": torch.zeros(1, 16, 2, 2)}
        >>> [tuple(tensor.shape) for tensor in predictions_in(output)]
        [(1, 2, 8, 8)]
    """
    if isinstance(output, Tensor):
        yield output
        return
    for name in NAMES:
        main = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if main is not None:
            yield from predictions_in(main)
            for key, value in children_of(output):
                if str(key).startswith(_AUXILIARY):
                    yield from predictions_in(value)
            return
    if isinstance(output, list | tuple):
        for child in output:
            yield from predictions_in(child)
    else:
        yield from (tensor for _, tensor in tensors_in(output))
