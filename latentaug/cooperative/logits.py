"""Read the logits out of what segmentation models return: tensors, mappings, model outputs, deep supervision."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentaug.cooperative.given_loss import OutputLoss
from latentaug.discovery.results import NAMES, predictions_in
from latentaug.nets.functional import resize
from latentaug.tracing.record import depends
from latentaug.tracing.tree import children_of

logger = logging.getLogger("latentaug")


class Prediction(NamedTuple):
    """The logits of one pass, at the labels' size."""

    main: Tensor
    """Those that a segmentation is made of."""
    outputs: list[Tensor]
    """All of them: more than one under deep supervision."""
    shares: list[float]
    """What part each has in the loss."""
    output: Any = None
    """What they were read from."""

    def loss(self, loss: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> Tensor:
        """Return the loss over all outputs, the mean by their shares; an `OutputLoss` gets what they were read from."""
        if isinstance(loss, OutputLoss):
            return loss(self.output, labels)
        if len(self.outputs) == 1:
            return loss(self.main, labels)
        terms = [share * loss(logits, labels) for share, logits in zip(self.shares, self.outputs, strict=True)]
        return torch.stack(terms).sum()


def read_logits(
    output: Any, num_classes: int, spatial_dims: int, reader: Callable[[Any], Any] | None = None
) -> list[Tensor]:
    """Find all logits [B, num_classes, *S] in what a model returned.

    Reads a tensor, `{"out": …, "aux": …}`, anything with `logits`, and lists and tuples, where other things than logits
    are passed over. Outputs stacked to [B, n, num_classes, *S] are taken apart. Of a mapping with other names, the only
    tensor that can be logits is taken.

    Args:
        output: What the model returned.
        num_classes: Channels of the logits.
        spatial_dims: Number of spatial axes.
        reader: The user's own: returns the logits, or a list of them, from `output`.

    Raises:
        TypeError: There is no tensor in it.
        ValueError: No tensor has the shape, several have it under names of their own, or one of the reader's has not.

    Example:
        >>> read_logits({"out": torch.zeros(1, 2, 8, 8), "features": torch.zeros(1, 2, 8, 8)}, 2, 2)[0].shape
        torch.Size([1, 2, 8, 8])
    """
    found = list(predictions_in(output if reader is None else reader(output)))
    tensors = [part for tensor in found for part in _unstacked(tensor, num_classes, spatial_dims)]
    if not tensors:
        raise TypeError(
            f"CooperativeModel finds no logits in what the model returns, a {type(output).__name__}. "
            "Pass logits=, a callable that reads them from it."
        )
    logits = [t for t in tensors if t.ndim == spatial_dims + 2 and t.shape[1] == num_classes]
    if not logits or (reader is not None and len(logits) < len(tensors)):
        raise ValueError(
            f"CooperativeModel needs logits [B, {num_classes}, *S] with {spatial_dims} spatial axes; got "
            f"{', '.join(str(tuple(t.shape)) for t in tensors[:8])}. Check `num_classes`, or pass logits=, a callable "
            "that reads them from what the model returns."
        )
    if len(logits) > 1 and reader is None and _is_named(output):
        raise ValueError(
            f"CooperativeModel cannot tell which of {', '.join(str(key) for key, _ in children_of(output))} are the "
            "logits. Pass logits=, a callable that returns them, or a list of them, from what the model returns."
        )
    return logits


def tell_of_probabilities(who: str, outputs: Sequence[Tensor]) -> None:
    """Warn of outputs that look like probabilities, which a model ends in that has an activation at its end.

    Where outputs have a graph, it says so; or else their values do, which those of an untrained model may by chance.
    """
    if all(map(_is_probability, outputs)):
        remedy = "p.logit()" if outputs[0].shape[1] == 1 else "p.clamp_min(1e-6).log()"
        logger.warning(
            "%s returns what looks like probabilities, and is taken to return logits. If so, leave its last activation "
            "out, or pass logits=lambda p: %s.",
            who,
            remedy,
        )


def _is_probability(output: Tensor) -> bool:
    if output.grad_fn is not None:
        return type(output.grad_fn).__name__.startswith(("SigmoidBackward", "SoftmaxBackward"))
    return bool(((output >= 0) & (output <= 1)).all())


class LogitsReader:
    """Read the logits of one model, pass after pass.

    Args:
        num_classes: Channels of the logits.
        reader: The user's own, as in `read_logits`.
    """

    def __init__(self, num_classes: int, reader: Callable[[Any], Any] | None) -> None:
        self.num_classes = num_classes
        self.reader = reader
        self._main: dict[int, int] = {}  # position by the number of outputs, where several are finest
        self._told = False

    def read(self, output: Any, size: Sequence[int], codes: Sequence[Tensor] = ()) -> Prediction:
        """Return the logits in what the model returned, at a size.

        Args:
            output: What the model returned.
            size: Spatial size of the labels.
            codes: The codes of that pass. Networks such as UNet++ return outputs of one size of which only the last
                passes through the bottleneck: the segmentation is the first of the finest that all codes take part in.
        """
        outputs = read_logits(output, self.num_classes, len(size), self.reader)
        if len(outputs) > 1 and codes and len(outputs) not in self._main:
            candidates = finest(outputs)
            if len(candidates) > 1:
                whole = (i for i in candidates if all(depends(outputs[i], code) for code in codes))
                self._main[len(outputs)] = next(whole, candidates[0])
        return at_size(outputs, self._place(outputs), size)._replace(output=output)

    def main(self, output: Any, size: Sequence[int]) -> Tensor:
        """Return the logits that a segmentation is made of, at a size; of a pass that is followed by none of a loss."""
        outputs = read_logits(output, self.num_classes, len(size), self.reader)
        if len(finest(outputs)) > 1 and len(outputs) not in self._main and not self._told:
            self._told = True
            logger.warning(
                "Of the %d outputs of a %s, %d have one size, and the first of these is taken. Pass logits=, a "
                "callable that returns the one that segments, such as lambda output: output[-1].",
                len(outputs),
                type(output).__name__,
                len(finest(outputs)),
            )
        return resize(outputs[self._place(outputs)], size)

    def _place(self, outputs: Sequence[Tensor]) -> int:
        """Return the position of the segmentation among the outputs."""
        if len(outputs) == 1:
            return 0
        return self._main[len(outputs)] if len(outputs) in self._main else finest(outputs)[0]


def at_size(outputs: Sequence[Tensor], main: int, size: Sequence[int]) -> Prediction:
    """Bring logits to the labels' size, and share the loss out by their resolution.

    An output at half the resolution has half the share, as is usual in nnU-Net; those at one resolution have equal
    shares. They add up to one, so that the loss keeps its scale.
    """
    resolutions = [math.prod(n / m for n, m in zip(t.shape[2:], size, strict=True)) ** (1 / len(size)) for t in outputs]
    resized = [resize(logits, size) for logits in outputs]
    return Prediction(resized[main], resized, [one / sum(resolutions) for one in resolutions])


def finest(outputs: Sequence[Tensor]) -> list[int]:
    """Return the positions of the outputs at the highest resolution."""
    sites = [math.prod(logits.shape[2:]) for logits in outputs]
    return [i for i, n in enumerate(sites) if n == max(sites)]


def _unstacked(tensor: Tensor, num_classes: int, spatial_dims: int) -> Sequence[Tensor]:
    stacked = tensor.ndim == spatial_dims + 3 and tensor.shape[2] == num_classes
    return tensor.unbind(1) if stacked else [tensor]


def _is_named(output: Any) -> bool:
    """Tell whether outputs go by names that say nothing of logits."""
    if isinstance(output, Tensor | list | tuple):
        return False
    keys = {str(key) for key, _ in children_of(output)}
    return not keys.intersection(NAMES)
