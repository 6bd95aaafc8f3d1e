"""Mixing of a whole pass on networks of other libraries: as if all that is alive at the code were mixed, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentaug import LatentTap, augmented
from latentaug.tap.whole_pass import CannotFollow
from tests.integrations.handwritten_rows import ROWS as HANDWRITTEN
from tests.integrations.monai_rows import ROWS as MONAI
from tests.integrations.nnunet_rows import ROWS as NNUNET
from tests.integrations.rows import Row, parameters
from tests.integrations.smp_rows import ROWS as SMP
from tests.integrations.torchvision_rows import ROWS as TORCHVISION
from tests.integrations.transformers_rows import ROWS as TRANSFORMERS
from tests.support.compare import close, gradients
from tests.support.mixing import FixedMixup, mixed_by_hand
from tests.support.random_streams import seed_all
from tests.support.trees import leaves

ROWS = [*SMP, *TORCHVISION, *MONAI, *TRANSFORMERS, *NNUNET, *HANDWRITTEN]

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

EACH = pytest.mark.parametrize("row", parameters(ROWS), scope="module")


def images_of(row: Row) -> Tensor:
    return torch.randn((3, *row.shape[1:]), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixed(row: Row, train: bool, way: str, images: Tensor) -> tuple[nn.Module, Any]:
    model = row.model(train)
    seed_all(0)
    if way == "augmented":
        with augmented(model, {row.spot: MIXUP}):
            return model, model(images)
    with LatentTap(model, row.spot, call=row.call) as tap:
        model(images)
        return model, tap.replay(MIXUP, full=way == "full")


@EACH
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_mixing_equals_what_is_mixed_by_hand(row: Row, train: bool) -> None:
    if train not in row.modes:
        pytest.skip("the row is of the other mode")
    name, images = str(row), images_of(row)
    reachable = name not in REFUSED and name not in BEYOND_THE_ORACLE
    expected = mixed_by_hand(row, train, MIXUP, images)[1:] if reachable else None
    for way in ("fast", "full", "augmented") if train else ("fast", "full"):
        refused = REFUSED.get(name)
        if way == "augmented" and name in CALLED_TWICE:
            refused = "comes to its layer a second time"
        if refused:
            with pytest.raises(CannotFollow, match=refused):
                mixed(row, train, way, images)
            continue
        model, output = mixed(row, train, way, images)
        if expected is not None:
            assert close([tensor.detach() for tensor in leaves(output)], expected[0], 1e-9)
            assert close(gradients(model, output), expected[1], 1e-8)
