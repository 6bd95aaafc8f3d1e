"""Running means and overlap scores, gathered on the device and read at the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentaug import ranks
from latentaug.cooperative.labels import squeeze_labels, whole_numbers
from latentaug.nets.functional import to_labels


class Overlap:
    """Count where a segmentation agrees with the labels, batch by batch, without waiting for the device.

    Args:
        num_classes: Channels of the logits; 1 means one logit, which tells class 1 from class 0.
        ignore_index: Label of pixels that don't count. A class that is ignored is not scored.
        device: Where the logits will be.

    Attributes:
        counts: Pixels so far, a row per label, a column per prediction.

    Example:
        >>> overlap = Overlap(num_classes=1)
        >>> overlap.add(torch.tensor([[[2.0, 3.0, -1.0, -2.0]]]), torch.tensor([[1, 0, 0, 0]]))
        >>> overlap.scores()
        {'iou': 0.5, 'dice': 0.666..., 'iou_1': 0.5, 'dice_1': 0.666...}
    """

    def __init__(self, num_classes: int, ignore_index: int = -100, device: torch.device | str = "cpu") -> None:
        self.ignore_index = ignore_index
        classes = range(num_classes) if num_classes > 1 else range(1, 2)
        self.scored = [index for index in classes if index != ignore_index]
        self.counts = torch.zeros(classes.stop, classes.stop, dtype=torch.long, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Shape:
            logits: [B, C, *S].   labels: [B, *S] or [B, 1, *S], class indices of any type; rounded to whole numbers.
        """
        labels = whole_numbers(squeeze_labels(labels, logits.ndim - 2)).long()
        outside = self.counts.numel()  # a cell of its own for ignored pixels: selecting the others would synchronise
        cells = torch.where(
            labels == self.ignore_index, outside, labels * len(self.counts) + to_labels(logits)
        ).flatten()
        counts = torch.zeros(outside + 1, dtype=torch.long, device=cells.device)
        self.counts += counts.scatter_add_(0, cells, torch.ones_like(cells))[:outside].view_as(self.counts)

    def scores(self) -> dict[str, float]:
        """Return intersection over union and Dice, for each class and their mean.

        Returns:
            `iou` and `dice`, the means, then `iou_<class>` and `dice_<class>`. A class that is neither labelled nor
            predicted anywhere is NaN, and the means leave it out.
        """
        hits, total = self._hits_and_total(self.counts.cpu().double())
        kinds = {"iou": hits / (total - hits), "dice": 2 * hits / total}
        means = {name: float(values[self.scored].nanmean()) for name, values in kinds.items()}
        return means | {f"{name}_{index}": float(kinds[name][index]) for index in self.scored for name in kinds}

    def _hits_and_total(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each class the pixels where both agree, and those of labels and predictions together."""
        return counts.diagonal(), counts.sum(0) + counts.sum(1)


class RegionOverlap(Overlap):
    """Count where regions, which may overlap, agree with their labels; otherwise as `Overlap` does.

    Attributes:
        counts: Pixels so far, a row per region: in both, in the labels, in the prediction.

    Example:
        >>> overlap = RegionOverlap(num_classes=2)
        >>> overlap.add(torch.tensor([[[2.0, 3.0], [-1.0, 2.0]]]), torch.tensor([[[1, 0], [0, 1]]]))
        >>> overlap.scores()
        {'iou': 0.75, 'dice': 0.833..., 'iou_0': 0.5, 'dice_0': 0.666..., 'iou_1': 1.0, 'dice_1': 1.0}
    """

    def __init__(self, num_classes: int, ignore_index: int = -100, device: torch.device | str = "cpu") -> None:
        super().__init__(num_classes, ignore_index, device)
        self.scored = list(range(num_classes))
        self.counts = torch.zeros(num_classes, 3, dtype=torch.long, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Shape:
            logits, labels: [B, C, *S]; labels 0 and 1.
        """
        labels = whole_numbers(labels)
        valid = labels != self.ignore_index
        predicted, labelled = to_labels(logits, regions=True).bool() & valid, (labels > 0.5) & valid
        both = (labelled & predicted, labelled, predicted)
        self.counts += torch.stack([one.transpose(0, 1).flatten(1).sum(1) for one in both], dim=1)

    def _hits_and_total(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        return counts[:, 0], counts[:, 1] + counts[:, 2]


def add_to(sums: dict[str, Tensor], values: Mapping[str, Tensor], weight: int = 1) -> None:
    """Add `weight` times each value to the sum of its name."""
    for name, value in values.items():
        sums[name] = sums[name] + weight * value if name in sums else weight * value


def means_of(sums: Mapping[str, Tensor], count: int | Tensor) -> dict[str, float]:
    """Divide sums by their number, and read them all at once.

    Example:
        >>> sums = {}
        >>> add_to(sums, {"loss": torch.tensor(1.0)})
        >>> add_to(sums, {"loss": torch.tensor(4.0)}, weight=2)
        >>> means_of(sums, 3)
        {'loss': 3.0}
    """
    return dict(zip(sums, (torch.stack(list(sums.values())) / count).tolist(), strict=True))


def over_ranks(what: str, sums: Mapping[str, Tensor], count: int | Tensor) -> tuple[dict[str, Tensor], int | Tensor]:
    """Add up the sums of all ranks, and their numbers, which the host waits for; alone they are as they were.

    Args:
        what: A name of what is added up, the same on all ranks.
        sums: Of this rank, by name; ranks may have other names.
        count: Their number on this rank.
    """
    if not ranks.several():
        return dict(sums), count
    total, counted = dict[str, Tensor](), 0
    for others, number in ranks.gathered(what, ({name: one.cpu() for name, one in sums.items()}, int(count))):
        add_to(total, others)
        counted += number
    return total, counted
