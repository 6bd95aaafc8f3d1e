"""Mixing of a whole pass on networks of other libraries: as if all that is alive at the code were mixed, or refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap, augmented
from latentaug.tap.whole_pass import CannotFollow
from tests.integrations import smp_rows
from tests.integrations.handwritten_rows import ROWS as HANDWRITTEN
from tests.integrations.monai_rows import ROWS as MONAI
from tests.integrations.nnunet_rows import ROWS as NNUNET
from tests.integrations.rows import Row, parameters, unpaired
from tests.integrations.torchvision_rows import ROWS as TORCHVISION
from tests.integrations.transformers_rows import ROWS as TRANSFORMERS
from tests.support.compare import close, gradients
from tests.support.mixing import FixedMixup, mixed_by_hand
from tests.support.random_streams import seed_all
from tests.support.trees import leaves

ROWS = [*smp_rows.ROWS, *TORCHVISION, *MONAI, *TRANSFORMERS, *NNUNET, *HANDWRITTEN]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*deprecated.*"),  # what the libraries themselves use
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
]

MIXUP = FixedMixup()
INDICES = "reads, after the code, a tensor of int64"
REFUSED = {
    "by hand SegNet, unpooling": INDICES,
    "by hand pooled with indices, around skips": INDICES,
    "MONAI Quicknat 2-D": INDICES,
    "by hand checkpointed decoder": "in a part that is checkpointed",
}
CALLED_TWICE = (
    "by hand U-Net, one block down, one up",
    "by hand U-Net, one block for all levels",
    "by hand siamese",
    "by hand ConvLSTM at the bottleneck",
    "by hand SegNet, unpooling",
    "by hand pooled with indices, around skips",
    "by hand centre thrown away",
)
BEYOND_THE_ORACLE = ("by hand FiLM by a context network",)  # whose memory cannot be written to

EACH = pytest.mark.parametrize("row", parameters(unpaired(ROWS)), scope="session")  # as in the matrix


def images_of(row: Row) -> Tensor:
    return torch.randn((3, *row.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def replayed(row: Row, train: bool, images: Tensor) -> Iterator[tuple[nn.Module, Callable[[], Any]]]:
    """Yield the ways to mix in replays of one pass, a fast and a full one."""
    model = row.known(train)
    seed_all(0)
    with LatentTap(model, row.spot, call=row.call) as tap:
        model(images)
        for full in (False, True):
            yield model, partial(tap.replay, MIXUP, full=full)


def in_the_pass(row: Row, images: Tensor) -> tuple[nn.Module, Callable[[], Any]]:
    """Return the way to mix in the pass itself."""
    model = row.known(True)
    seed_all(0)

    def run() -> Any:
        with augmented(model, {row.spot: MIXUP}):
            return model(images)

    return model, run


def modes_of(row: Row) -> tuple[bool, ...]:
    """Return both; of the largest library training alone, in which its networks do all that they do in eval mode."""
    return (True,) if row.library == smp_rows.LIBRARY and not row.quick else row.modes


@EACH
def test_mixing_equals_what_is_mixed_by_hand(row: Row) -> None:
    name, images, refused = str(row), images_of(row), REFUSED.get(str(row))
    for train in modes_of(row):
        expected = None
        if not refused and name not in BEYOND_THE_ORACLE:
            expected = mixed_by_hand(row, train, MIXUP, images)[1:]
        for model, run in replayed(row, train, images):
            check(model, run, refused, expected)
        if train:
            again = "comes to its layer a second time" if name in CALLED_TWICE else None
            check(*in_the_pass(row, images), again or refused, expected)


def check(
    model: nn.Module,
    run: Callable[[], Any],
    refused: str | None,
    expected: tuple[list[Tensor], list[Tensor | None]] | None,
) -> None:
    """Mix, and see that it is refused, or as by hand."""
    if refused:
        with pytest.raises(CannotFollow, match=refused):
            run()
        return
    output = run()
    if expected is not None:
        assert close([tensor.detach() for tensor in leaves(output)], expected[0], 1e-9)
        assert close(gradients(model, output), expected[1], 1e-8)
