"""Measure trained models under shifts: the same shifted images for each, nothing trained, nothing left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentaug.checks import described, function, ignored_label, shown, whole
from latentaug.cooperative.labels import of_size, squeeze_labels, whole_numbers
from latentaug.cooperative.logits import LogitsReader, tell_of_probabilities
from latentaug.nets.functional import to_labels
from latentaug.robustness.result import CLEAN, Robustness
from latentaug.robustness.shifts import SEVERITIES, Shift, check_shifts, intensity_shifts
from latentaug.tracing.isolation import preserved_modes
from latentaug.training.batches import check_batch, described_batch
from latentaug.training.finite import all_finite

logger = logging.getLogger(__name__)

_AS_IT_TAKES_THEM = " Let the loader yield images as it takes them, or pass then=, a callable that makes such."


@torch.no_grad()
def measure(
    models: nn.Module | Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    num_classes: int,
    shifts: Mapping[str, Shift] | None = None,
    severities: Sequence[int] = SEVERITIES,
    then: Callable[[Tensor], Tensor] | None = None,
    ignore_index: int = -100,
    logits: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Robustness:
    """Return how well models segment the images of a loader, as they are and under shifts.

    Each model is run in eval mode and has its modes again afterwards. All see the same shifted images, each a copy of
    its own. What has no modes, as an exported or a frozen model, is run as it is.

    Args:
        models: A model, or several by name; gains are over the first.
        loader: Yields batches: pairs (images, labels), or mappings with "image" and "label". It is gone through once.
        num_classes: Channels of the logits; 1 means a binary segmentation with one logit.
        shifts: What is done to images, by name; see `Shift`. Default: `intensity_shifts()`. `mr_artefacts()` gives
            those of MR scanners.
        severities: Which severities, of 1 to 5. Default: all.
        then: What is done to images after the shift, such as a standardisation that the loader does before it.
            Default: nothing.
        ignore_index: Label of pixels that don't count.
        logits: Callable that returns the logits from what a model returns. Default: a tensor, "out", "logits", or the
            finest of a list.
        seed: Of all shifts; the same seed, the same images.

    Shape:
        images: [B, C, *S].   labels: class indices [B, *S] or [B, 1, *S].

    Raises:
        ValueError: There are no models, shifts or cases; a severity is none of 1 to 5; labels or what a shift returns
            don't fit the images; a label is no class.
        TypeError: A model is no module, a batch is neither a pair nor a mapping, or an argument is of another kind.

    Example:
        >>> unet = nn.Conv2d(1, 2, 3, padding=1)
        >>> batches = [(torch.rand(2, 1, 16, 16), torch.ones(2, 16, 16, dtype=torch.long))]
        >>> found = measure(unet, batches, num_classes=2, severities=[1, 3])
        >>> len(found.cells)
        14
    """
    named = _named(models)
    whole("num_classes", num_classes)
    given = check_shifts(intensity_shifts() if shifts is None else shifts)
    if CLEAN in given:
        raise ValueError(f"shifts must not be called {CLEAN!r}, as images without a shift are. Call it otherwise.")
    whole("seed", seed, least=0)
    ignored_label(ignore_index)
    if not _scored(num_classes, ignore_index):
        raise ValueError(
            f"ignore_index must leave a class but the background to be scored; got {ignore_index} of {num_classes}."
        )
    if not isinstance(loader, Iterable):
        raise TypeError(f"loader must yield batches, as a DataLoader does; got {shown(loader)}.")
    function("then", then)
    function("logits", logits)
    chosen = _severities(severities)
    keys = [(CLEAN, 0), *((name, severity) for name in given for severity in chosen)]
    scores: dict[tuple[str, str, int], list[float]] = {(model, *key): [] for model in named for key in keys}
    lost: list[tuple[str, str, int]] = []
    readers = {name: LogitsReader(num_classes, logits) for name in named}
    with ExitStack() as stack:
        for model in named.values():
            stack.enter_context(_in_eval_mode(model))
        for number, batch in enumerate(loader):
            images, labels = _pair(batch)
            labels = check_batch(images, labels, num_classes, ignore_index)
            for shift, severity in keys:
                changed = images
                if shift != CLEAN:
                    generator = _generator(seed, number, shift, severity)
                    changed = _changed(given[shift], shift, images, severity, generator)
                if then is not None:
                    with _failing("then, a callable (images) -> images,"):
                        made = then(changed.clone())
                    changed = _alike("then", made, images)
                for name, model in named.items():
                    given_to_it = _copied_to(model, changed)
                    with _failing(f"models[{name!r}] was called with {described(given_to_it)}, and", _AS_IT_TAKES_THEM):
                        returned = model(given_to_it)
                    found = readers[name].main(returned, images.shape[2:])
                    if number == severity == 0 and num_classes == 1:
                        tell_of_probabilities(f"models[{name!r}]", [found])
                    if not found.isfinite().all():
                        lost.append((name, shift, severity))
                    scores[name, shift, severity] += dice_of_cases(found, labels, num_classes, ignore_index)
    _tell_of_lost(lost)
    if not next(iter(scores.values())):
        raise ValueError("loader must yield one batch at least; got none.")
    return Robustness(scores)


def dice_of_cases(logits: Tensor, labels: Tensor, num_classes: int, ignore_index: int = -100) -> list[float]:
    """Return the Dice of each case, the mean over classes but the background that are labelled or predicted.

    NaN where none is. A class that is ignored is not scored either.

    Shape:
        logits: [B, C, *S].   labels: class indices [B, *S] or [B, 1, *S].

    Example:
        >>> dice_of_cases(torch.tensor([[[2.0, 3.0, -1.0, -2.0]]]), torch.tensor([[1, 0, 0, 0]]), 1)
        [0.666...]
    """
    labels = whole_numbers(squeeze_labels(labels, logits.ndim - 2)).to(logits.device).flatten(1)
    counts = labels != ignore_index
    predicted = to_labels(logits).flatten(1)
    totals = []
    for index in _scored(num_classes, ignore_index):
        one, other = (predicted == index) & counts, (labels == index) & counts
        totals.append(torch.stack([2 * (one & other).sum(1), one.sum(1) + other.sum(1)]))
    hits, both = torch.stack(totals, 1).double()
    return list((hits / both).nanmean(0).tolist())


def _scored(num_classes: int, ignore_index: int) -> list[int]:
    return [index for index in range(1, max(num_classes, 2)) if index != ignore_index]


def _tell_of_lost(lost: Iterable[tuple[str, str, int]]) -> None:
    """Say where what is scored is not what a network is meant to return."""
    for model, shift, severity in dict.fromkeys(lost):
        logger.warning(
            "%s returns logits that are not finite under %s %d; its Dice there says little.", model, shift, severity
        )


def _severities(severities: object) -> list[int]:
    if not isinstance(severities, Iterable):
        raise TypeError(f"severities must be a list of some of 1 to 5; got {shown(severities)}.")
    chosen = list(severities)
    whole_ones = all(isinstance(one, int | np.integer) and not isinstance(one, bool) for one in chosen)
    if not chosen or not whole_ones or not {*chosen} <= {*SEVERITIES}:
        raise ValueError(f"severities must be some of 1 to 5; got {chosen!r}.")
    return [int(one) for one in dict.fromkeys(chosen)]


@contextmanager
def _failing(said: str, hint: str = "") -> Iterator[None]:
    """Say of what a model or a user's callable raises which one it is."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        raise RuntimeError(f"{said} raised {type(error).__name__}: {error}{hint}") from error


def _named(models: object) -> dict[str, nn.Module]:
    named = dict(models) if isinstance(models, Mapping) else {"model": models}
    if len({str(name) for name in named}) < len(named):
        raise ValueError(f"models must have different names; got {[*named]!r}.")
    if not named:
        raise ValueError("models must hold one model at least; got none.")
    for name, model in named.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"models must be modules, by name; got {type(model).__name__} as {name!r}.")
    return {str(name): model for name, model in named.items() if isinstance(model, nn.Module)}


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping) and {"image", "label"} <= {*batch}:
        batch = batch["image"], batch["label"]
    if not (isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(one, Tensor) for one in batch)):
        raise TypeError(
            'loader must yield pairs (images, labels) of tensors, or mappings with "image" and "label"; got '
            f"{described_batch(batch)}. Wrap it, for instance ((images, labels) for images, labels, *_ in loader)."
        )
    images, labels = batch
    if images.ndim < 3 or not images.numel():
        raise ValueError(
            f"loader must yield images [B, C, *S] of one sample at least; got {described(images)}. Put it into a "
            "DataLoader, which makes batches."
        )
    if not all_finite(images):
        raise ValueError("loader must yield finite images; got some with NaN or infinity. Look at the data.")
    if not of_size(labels, len(images), images.shape[2:]):
        raise ValueError(
            f"loader must yield labels of the size of the images; got images {tuple(images.shape)} and labels "
            f"{tuple(labels.shape)}. Of one channel for each class take labels.argmax(1)."
        )
    return images, labels


def _generator(seed: int, batch: int, shift: str, severity: int) -> torch.Generator:
    """Return a stream of its own for each batch, shift and severity, so that none depends on which others there are."""
    text = f"{seed} {batch} {severity} {shift}".encode()
    return torch.Generator().manual_seed(int.from_bytes(text, "little") % (2**61 - 1))


def _changed(shift: Shift, name: str, images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    who = f"shifts[{name!r}]"
    with _failing(f"{who}, a callable (images, severity, generator) -> images,"):
        changed = shift(images.clone(), severity, generator)
    return _alike(who, changed, images, channels=True)


def _alike(who: str, found: object, images: Tensor, *, channels: bool = False) -> Tensor:
    """See that labels of images are those of what was made of them, too; channels may differ unless told otherwise."""
    fits = isinstance(found, Tensor) and found.is_floating_point() and found.device.type != "meta"
    if not fits or not _same_places(found, images, channels):
        got = described(found)
        raise ValueError(
            f"{who} must return images of shape {tuple(images.shape)}, floating-point, where labels stay where "
            f"they are; got {got}."
        )
    assert isinstance(found, Tensor)
    if not all_finite(found):
        raise ValueError(f"{who} must return finite images; got some with NaN or infinity.")
    return found


def _same_places(found: Any, images: Tensor, channels: bool) -> bool:
    if channels:
        return bool(found.shape == images.shape)
    return found.ndim == images.ndim and len(found) == len(images) and found.shape[2:] == images.shape[2:]


def _copied_to(model: nn.Module, images: Tensor) -> Tensor:
    """Copy images, which a model may change, to where it is, and to its precision if no weight has theirs."""
    weights = list(model.parameters())
    device = weights[0].device if weights else images.device
    types = list(dict.fromkeys(weight.dtype for weight in weights if weight.is_floating_point()))
    return images.to(device, images.dtype if images.dtype in types or not types else types[0], copy=True)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode for a while, if it has modes."""
    if not hasattr(model, "training"):  # frozen by TorchScript
        yield
        return
    with preserved_modes(model):
        with suppress(NotImplementedError):  # as exported programs raise
            model.eval()
        yield
