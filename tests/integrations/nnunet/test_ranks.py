"""Two processes train nnU-Net's network by its own step: their weights stay the same, and are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.processes import found_by_ranks

pytest.importorskip("nnunetv2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]

SCRIPT = Path(__file__).with_name("together.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = found_by_ranks(SCRIPT, 2, tmp_path_factory.mktemp("ranks"))
    return found


@pytest.mark.parametrize("case", ["batch_dice=False", "batch_dice=True"])
def test_weights_stay_the_same_on_all_ranks(ranks: list[dict[str, Any]], case: str) -> None:
    first, second = (found[case] for found in ranks)
    assert first["wrapper"] == second["wrapper"] == "DistributedDataParallel"
    assert first["losses"] != second["losses"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_they_are_those_of_one_process_with_the_batches_of_both(ranks: list[dict[str, Any]], tmp_path: Path) -> None:
    (alone,) = found_by_ranks(SCRIPT, 1, tmp_path)
    together = [found["batch_dice=False"] for found in ranks]
    losses = [found["losses"][step] for step in range(2) for found in together]
    assert losses == pytest.approx(alone["losses"], rel=1e-5)
    for name, value in alone["weights"].items():
        moved = (value - alone["before"][name]).abs().max()
        torch.testing.assert_close(together[0]["weights"][name], value, rtol=0, atol=1e-3 * float(moved) + 1e-7)
