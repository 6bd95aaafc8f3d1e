"""Hard examples in the middle of a training: scored, shown in a notebook, and written to TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from latentaug.checks import function, shown, tensor, whole
from latentaug.cooperative.explanation import Explanation
from latentaug.cooperative.model import CooperativeModel
from latentaug.tracing.isolation import preserved_modes
from latentaug.tracing.keeping import is_spread
from latentaug.tracing.location import unwrap
from latentaug.training.callbacks import Callback, TensorBoardLog, Trainer
from latentaug.training.evaluation import overlaps_of
from latentaug.training.random_streams import preserved_random_streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Examined(NamedTuple):
    """What `examine` returns."""

    explanation: Explanation
    """Hard examples, and every step of their making."""
    scores: dict[str, float]
    """How hard they are, by name."""


def examine(model: nn.Module, images: Tensor, labels: Tensor, seed: int = 0) -> Examined:
    """Make hard examples of a batch, and score them; weights, modes, statistics and random streams stay as they are.

    Everything runs in eval mode and without noise. The numbers are read at the end: the host waits for the device.

    Args:
        model: A `CooperativeModel`, also inside a wrapper that holds its weights in one piece.
        images: The batch, as the model is trained on it, on any device.
        labels: Its labels.
        seed: Seeds what is sampled, so that batches that are examined again and again have the same kind of change.

    Returns:
        The explanation, and the scores that there are. Overlaps are means over classes: `dice`, of the network on the
        batch itself; `hard_segmentation_dice`, of the logits from changed codes; `hard_image_dice`, of the network on
        the hard images. For the image code and the (deepest) shape code: `…_masked`, the fraction of the mask's entries
        that are damped or dropped; `…_saliency_top_tenth`, the fraction of the saliency's magnitude that the most
        salient tenth of the channels holds, 0.1 where it is spread evenly, and 1 where it is all in one channel.

    Raises:
        TypeError: The model is no `CooperativeModel`.
        ValueError: Its weights are spread over processes.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(8, 2, 4, 4))
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(2, (2, 16, 16))
        >>> coop = CooperativeModel(network, num_classes=2, example=images)
        >>> sorted(examine(coop, images, labels).scores)
        ['dice', 'hard_segmentation_dice', 'shape_masked', 'shape_saliency_top_tenth']
    """
    coop = examinable(model)
    _check_batch(images, labels, seed)
    device = next(coop.parameters()).device
    images, labels = images.to(device), labels.to(device)
    with preserved_random_streams(device, None), preserved_modes(coop), torch.no_grad():
        found = coop.explain(images, labels, generator=torch.Generator().manual_seed(seed))
        scores = {"dice": _dice(coop, found.logits, labels)}
        scores["hard_segmentation_dice"] = _dice(coop, found.hard_segmentation, labels)
        if found.hard_images is not None:
            logits = coop.eval()(found.hard_images, labels).logits
            scores["hard_image_dice"] = _dice(coop, logits, labels)
    for name in ("image", "shape"):
        factor, saliency = getattr(found, f"{name}_factor"), getattr(found, f"{name}_saliency")
        if factor is not None:
            scores[f"{name}_masked"] = float((factor < 1).float().mean())
        if saliency is not None:
            scores[f"{name}_saliency_top_tenth"] = float(top_tenth(saliency))
    return Examined(found, scores)


def examinable(model: nn.Module) -> CooperativeModel:
    """Return the `CooperativeModel` that is to be examined; refuse what cannot be."""
    coop = unwrap(model)
    if not isinstance(coop, CooperativeModel):
        raise TypeError(f"Hard examples are those of a CooperativeModel; got {type(coop).__name__}.")
    if is_spread(coop):
        raise ValueError(
            "Hard examples cannot be looked at from one rank where weights are spread over processes, as by FSDP: the "
            "ranks would wait for each other. Leave the callback out, and look at a checkpoint afterwards."
        )
    return coop


def top_tenth(saliency: Tensor) -> Tensor:
    """Return the fraction of a saliency's magnitude that its most salient tenth of channels holds, mean over samples.

    Shape:
        saliency: [B, C, *grid].

    Example:
        >>> float(top_tenth(torch.ones(2, 20, 4, 4)))
        0.1...
    """
    channels = saliency.abs().flatten(2).sum(2)
    top = channels.topk(-(-channels.shape[1] // 10), dim=1).values.sum(1)
    return (top / channels.sum(1).clamp_min(torch.finfo(channels.dtype).tiny)).mean()


def _dice(model: CooperativeModel, logits: Tensor, labels: Tensor) -> float:
    overlap = overlaps_of(model, logits.device)[0]
    overlap.add(logits, labels)
    return overlap.scores()["dice"]


class HardExampleLog(TensorBoardLog):
    """Write the hard examples of a batch to TensorBoard: a figure, and curves of how hard they are. After epochs.

    The curves, under `hard/`: Dice of the batch, of its hard segmentations and of its hard images; the fraction of a
    code that is masked; the fraction of the saliency that the most salient tenth of the channels holds, as `examine`
    in this module has them. `TensorBoardLog` has the losses; both may have one folder. Within epochs nothing is
    computed, and training takes the course that it takes without. Needs the package tensorboard, and matplotlib for the
    figure.

    Args:
        folder: Where the event files go.
        images: A batch as the model is trained on it, such as one of validation.
        labels: Its labels.
        every: Epochs from one look to the next. Default: 1.
        samples: Rows of the figure, at most. Default: 4.
        seed: Seeds what is sampled, so that each look has the same kind of change. Default: 0.

    Shape:
        images: [B, C, *S]; a figure is drawn of those of two and three axes.   labels: as the model takes them.

    Raises:
        TypeError: At the start of the fit: the model is no `CooperativeModel`.
        ValueError: `every` is not positive; or, at the start of the fit, the batch doesn't fit, or weights are spread
            over processes.

    Example:
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
        >>> callback = HardExampleLog("runs/mine/tensorboard", images, labels)
    """

    def __init__(
        self,
        folder: str | Path,
        images: Tensor,
        labels: Tensor,
        *,
        every: int = 1,
        samples: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(folder)
        self.looks = _Looks(images, labels, every, samples, seed)

    def on_start(self, trainer: Trainer) -> None:
        """Open an event file, if hard examples can be looked at."""
        self.looks.look(trainer)
        super().on_start(trainer)

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Add the figure, and one point to every curve."""
        if not self.looks.due(metrics):
            return
        found = self.looks.look(trainer)
        for name, value in found.scores.items():
            self._writer.add_scalar(f"hard/{name}", value, trainer.global_step)
        if self.looks.images.ndim in (4, 5) and importlib.util.find_spec("matplotlib") is not None:
            self._writer.add_figure("hard examples", self.looks.drawn(found), trainer.global_step)
        self._writer.flush()


class ShowHardExamples(Callback):
    """Show the hard examples of a batch while a model trains, in a notebook: one figure, drawn anew after epochs.

    No magic is needed, and training takes the course that it takes without. Needs matplotlib.

    Args:
        images: A batch as the model is trained on it, such as one of validation.
        labels: Its labels.
        every: Epochs from one look to the next. Default: 1.
        samples: Rows of the figure, at most. Default: 4.
        seed: Seeds what is sampled, so that each look has the same kind of change. Default: 0.
        show: Is called with each figure, such as `lambda figure: figure.savefig("hard.png")`. Default: a notebook's
            output, which needs IPython.

    Shape:
        images: [B, C, H, W] or [B, C, D, H, W].   labels: as the model takes them.

    Raises:
        TypeError: At the start of the fit: the model is no `CooperativeModel`.
        ValueError: `every` is not positive, or images have other axes; or, at the start of the fit, the batch doesn't
            fit, or weights are spread over processes.
        ModuleNotFoundError: At the start of the fit: IPython is missing, and there is no `show`.

    Example:
        >>> images, labels = torch.rand(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
        >>> callback = ShowHardExamples(images, labels, show=lambda figure: figure.savefig("hard.png"))
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        every: int = 1,
        samples: int = 4,
        seed: int = 0,
        show: Callable[[Figure], Any] | None = None,
    ) -> None:
        self.looks = _Looks(images, labels, every, samples, seed)
        if images.ndim not in (4, 5):
            raise ValueError(
                f"ShowHardExamples draws images [B, C, H, W] or [B, C, D, H, W]; got {tuple(images.shape)}. "
                "HardExampleLog has curves of others."
            )
        function("show", show)
        self._show = show

    def on_start(self, trainer: Trainer) -> None:
        """See that hard examples can be looked at, and shown."""
        self.looks.look(trainer)
        self._shown: Any = None
        if self._show is None and importlib.util.find_spec("IPython") is None:
            raise ModuleNotFoundError(
                "ShowHardExamples needs IPython to show figures in a notebook. Elsewhere pass show=, such as "
                'lambda figure: figure.savefig("hard.png").'
            )

    def on_epoch(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Draw the figure anew."""
        if not self.looks.due(metrics):
            return
        figure = self.looks.drawn(self.looks.look(trainer))
        if self._show is not None:
            self._show(figure)
        elif self._shown is not None:
            self._shown.update(figure)
        else:
            from IPython import display as notebook

            display: Any = notebook.display  # has no types
            self._shown = display(figure, display_id=True)


def _check_batch(images: object, labels: object, seed: object) -> None:
    tensor("images", images, who="A look at hard examples")
    if not isinstance(labels, Tensor):
        raise TypeError(f"A look at hard examples needs labels, a tensor of class indices; got {shown(labels)}.")
    whole("seed", seed, least=0)


class _Looks:
    """A batch that is looked at now and then, first when a fit starts: what is wrong with it shows before an epoch."""

    def __init__(self, images: Tensor, labels: Tensor, every: int, samples: int, seed: int) -> None:
        _check_batch(images, labels, seed)
        self.images, self.labels = images, labels
        self.every, self.samples, self.seed = whole("every", every), whole("samples", samples), seed

    def due(self, metrics: Mapping[str, float]) -> bool:
        return int(metrics["epoch"]) % self.every == 0

    def look(self, trainer: Trainer) -> Examined:
        return examine(trainer.model, self.images, self.labels, self.seed)

    def drawn(self, found: Examined) -> Figure:
        from latentaug.plot import plot_hard_examples

        return plot_hard_examples(self.images, self.labels, **found.explanation._asdict(), samples=self.samples)
