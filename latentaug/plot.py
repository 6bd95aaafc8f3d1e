"""Figures of hard examples: tensors in, a matplotlib figure out. Needs matplotlib, imported where it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentaug.figure import new_figure
from latentaug.nets.functional import to_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Array = npt.NDArray[Any]


# Colours of the classes after the background: distinct to readers who do not see red and green apart.
COLOURS = ("#d55e00", "#56b4e9", "#f0e442", "#009e73", "#cc79a7", "#0072b2", "#e69f00")


Column: TypeAlias = tuple[str, Tensor | None, Callable[["Axes", int, Tensor], None]]
"""A title, what is drawn below it, and what draws a row of it."""


def plot_hard_examples(
    images: Tensor,
    labels: Tensor,
    *,
    image_saliency: Tensor | None,
    image_factor: Tensor | None,
    hard_images: Tensor | None,
    logits: Tensor,
    shape_saliency: Tensor,
    shape_factor: Tensor | None,
    hard_segmentation: Tensor,
    refined: Tensor,
    samples: int = 4,
) -> Figure:
    """Draw how hard examples come about, a row for each sample of a batch: figures 1 and 3 of the paper on your data.

    From left to right: image with its labels, saliency and mask of the image code, the image that the masked code
    decodes to; the prediction, saliency and mask of the shape code, the segmentation that the masked code decodes to,
    and what the shape prior makes of that. `CooperativeModel.explain` returns these tensors under these names.
    Without an image decoder the columns of images are left out.

    Channel masks are drawn as one cell for each channel, spatial masks on the grid of the code; black is masked.
    Saliency is averaged over channels: red where more of the code raises the loss. Of volumes, the middle slice is
    drawn.

    Args:
        images: Clean images; the first channel is drawn.
        labels: Class indices; negative ones are left transparent. Or regions: where several overlap, the last is drawn.
        image_saliency: Gradient of the reconstruction loss with respect to the image code; None without one.
        image_factor: Factor of the mask on the image code; None leaves the column empty.
        hard_images: Images decoded from the masked image code; None likewise.
        logits: The model's prediction.
        shape_saliency: Gradient of the segmentation loss with respect to the shape code.
        shape_factor: Factor of the mask on the shape code; None likewise.
        hard_segmentation: Logits decoded from the masked shape code.
        refined: Logits that the shape prior makes of `hard_segmentation`.
        samples: Rows, at most. Default 4.

    Shape:
        images, hard_images: [B, C, *S].   labels: [B, *S]; of regions [B, classes, *S].
        logits, hard_segmentation, refined: [B, classes, *S].
        saliencies: [B, C, *grid] or tokens [B, C, N].   factors: broadcastable to those.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: The images are neither 2-D nor 3-D.

    References:
        Chen et al., MICCAI 2021, arXiv:2107.01079, figures 1 and 3.

    Example:
        >>> import torch
        >>> from latentaug.nets.ftn import FTN
        >>> from latentaug.cooperative.model import CooperativeModel
        >>> images, labels = torch.rand(2, 1, 32, 32), torch.randint(4, (2, 32, 32))
        >>> coop = CooperativeModel(FTN(width=4, depth=2), num_classes=4, example=images)
        >>> figure = plot_hard_examples(images, labels, **coop.explain(images, labels)._asdict())
        >>> len(figure.axes)
        18
    """
    if images.ndim not in (4, 5):
        raise ValueError(f"plot_hard_examples needs images [B, C, H, W] or [B, C, D, H, W]; got {tuple(images.shape)}.")
    size = tuple(images.shape[-2:])
    regions = labels.ndim == images.ndim and labels.shape[1] == logits.shape[1] > 1
    classes = logits.shape[1] + 1 if regions else max(logits.shape[1], 2)

    def predicted(logits: Tensor) -> Tensor:
        return _flattened(to_labels(logits, regions=True)) if regions else to_labels(logits)

    segmentation = _segmentation_painter(images, classes)
    of_images: list[Column] = [
        ("image saliency", image_saliency, _saliency_painter(size)),
        ("mask", image_factor, _mask_painter(size)),
        ("hard image", hard_images, _image_painter()),
    ]
    columns: list[Column] = [
        ("image and labels", _flattened(labels) if regions else labels, segmentation),
        *([] if hard_images is None else of_images),
        ("prediction", predicted(logits), segmentation),
        ("shape saliency", shape_saliency, _saliency_painter(size)),
        ("mask", shape_factor, _mask_painter(size)),
        ("hard segmentation", predicted(hard_segmentation), segmentation),
        ("refined", predicted(refined), segmentation),
    ]
    rows = min(samples, images.shape[0])
    figure, axes = _grid(rows, len(columns), aspect=size[0] / size[1])
    for column, (title, tensor, paint) in enumerate(columns):
        axes[0][column].set_title(title, fontsize=9)
        if tensor is not None:
            for row in range(rows):
                paint(axes[row][column], row, tensor.detach().float().cpu())
    return figure


def plot_gallery(pictures: Mapping[str, Tensor], *, samples: int = 3, columns: int = 4) -> Figure:
    """Draw batches of images side by side, each under its name: such as what several changes make of one batch.

    Args:
        pictures: Images by what they are called; the first channel is drawn, of volumes the middle slice. The grey
            values of the first batch, from its lowest to its highest, are those of all.
        samples: How many of each batch, at most. Default 3.
        columns: Batches in a row. Default 4.

    Shape:
        pictures: [B, C, H, W] or [B, C, D, H, W] each.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There are none, or some are neither 2-D nor 3-D.

    Example:
        >>> import torch
        >>> from latentaug import GIN
        >>> images = torch.rand(2, 1, 16, 16)
        >>> figure = plot_gallery({"images": images, "GIN": GIN().augment(images)})
        >>> [axes.get_title() for axes in figure.axes][:2]
        ['images', 'GIN']
    """
    if not pictures or any(one.ndim not in (4, 5) for one in pictures.values()):
        shapes = [tuple(one.shape) for one in pictures.values()]
        raise ValueError(f"plot_gallery needs images [B, C, H, W] or [B, C, D, H, W]; got {shapes}.")
    shown = {
        name: np.hstack([_plane(one[i, 0].detach().float().cpu()) for i in range(min(samples, len(one)))])
        for name, one in pictures.items()
    }
    first = next(iter(shown.values()))
    columns = min(columns, len(shown))
    figure, axes = _grid(-(-len(shown) // columns), columns, first.shape[0] / first.shape[1], width=4.0, titles=0.5)
    for i, (name, picture) in enumerate(shown.items()):
        place = axes[i // columns][i % columns]
        place.imshow(picture, cmap="gray", vmin=first.min(), vmax=first.max())
        place.set_title(name, fontsize=9)
    return figure


def _flattened(regions: Tensor) -> Tensor:
    """Draw regions [B, C, *S] over each other, into one map [B, *S] of their numbers from 1 on."""
    numbers = torch.arange(1, regions.shape[1] + 1, device=regions.device).view(-1, *[1] * (regions.ndim - 2))
    return ((regions > 0.5) * numbers).amax(dim=1)


# Painters: each puts one sample of a tensor on one pair of axes ---------------------------------------------------
def _image_painter() -> Callable[[Axes, int, Tensor], None]:
    def paint(axes: Axes, row: int, images: Tensor) -> None:
        axes.imshow(_plane(images[row, 0]), cmap="gray")

    return paint


def _segmentation_painter(images: Tensor, classes: int) -> Callable[[Axes, int, Tensor], None]:
    from matplotlib.colors import ListedColormap

    colours = ListedColormap([COLOURS[i % len(COLOURS)] for i in range(classes - 1)])
    background = images.detach().float().cpu()

    def paint(axes: Axes, row: int, labels: Tensor) -> None:
        axes.imshow(_plane(background[row, 0]), cmap="gray")
        plane = _plane(labels[row])
        shown = np.ma.masked_less_equal(plane, 0)
        axes.imshow(shown, cmap=colours, vmin=0.5, vmax=classes - 0.5, alpha=0.55, interpolation="nearest")

    return paint


def _saliency_painter(size: tuple[int, ...]) -> Callable[[Axes, int, Tensor], None]:
    def paint(axes: Axes, row: int, saliency: Tensor) -> None:
        plane = _on_grid(saliency[row].mean(dim=0), size)
        limit = float(np.abs(plane).max()) or 1.0
        axes.imshow(plane, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=_extent(size))

    return paint


def _mask_painter(size: tuple[int, ...]) -> Callable[[Axes, int, Tensor], None]:
    def paint(axes: Axes, row: int, factor: Tensor) -> None:
        one = factor[row]
        sites = one[0].numel()
        plane = _in_rows(one.flatten()) if sites == 1 else _on_grid(one.mean(dim=0), size)
        axes.imshow(plane, cmap="gray", vmin=0, vmax=max(1.0, float(np.nanmax(plane))), extent=_extent(size))

    return paint


def _extent(size: tuple[int, ...]) -> tuple[float, float, float, float]:
    """Return where the image lies, for what has another grid: so all panels have one size, and titles one height."""
    height, width = size
    return (-0.5, width - 0.5, height - 0.5, -0.5)


def _in_rows(channels: Tensor) -> Array:
    """Lay a value for each channel out on a nearly square raster, padded with nothing."""
    width = math.ceil(math.sqrt(channels.numel()))
    raster = np.full(width * math.ceil(channels.numel() / width), np.nan)
    raster[: channels.numel()] = channels.numpy()
    return raster.reshape(-1, width)


def _on_grid(sites: Tensor, size: Sequence[int]) -> Array:
    """Give tokens [N] the rows and columns of a grid shaped like the image; take the middle plane of volumes."""
    if sites.ndim == 1:
        n = sites.numel()
        rows = min(
            (r for r in range(1, n + 1) if n % r == 0), key=lambda r: abs(math.log(r * r / n * size[1] / size[0]))
        )
        sites = sites.reshape(rows, -1)
    return _plane(sites)


def _plane(tensor: Tensor) -> Array:
    """Return a 2-D plane: the tensor itself, or its middle slice."""
    while tensor.ndim > 2:
        tensor = tensor[tensor.shape[0] // 2]
    plane: Array = tensor.numpy()
    return plane


def _grid(rows: int, columns: int, aspect: float, width: float = 1.6, titles: float = 0.0) -> tuple[Figure, Any]:
    figure = new_figure(width * columns, (width * aspect + titles) * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.set_axis_off()
    return figure, axes
