"""Two processes with DDP or FSDP hold equal gradients: the mean of what each would have got alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.processes import found_by_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]

WORKER = Path(__file__).with_name("worker.py")
RANKS = 2

spec = importlib.util.spec_from_file_location("worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What every rank found in `.grad`, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    return found_by_ranks(WORKER, RANKS, folder)


@pytest.mark.parametrize("way", worker.WAYS)
@pytest.mark.parametrize(("name", "wrapper"), worker.CASES)
def test_gradients(results: list[dict[Any, Any]], name: str, wrapper: str, way: str) -> None:
    for number in range(worker.STEPS):
        first, second = (rank[name, wrapper, way, number] for rank in results)
        alone = [worker.gradients(worker.cooperative(name), "one backward", rank, number) for rank in range(RANKS)]
        for parameter, gradient in first.items():
            assert torch.equal(gradient, second[parameter]), parameter
            mean = sum(gradients[parameter] for gradients in alone) / RANKS
            torch.testing.assert_close(gradient, mean, rtol=1e-10, atol=1e-14)
        assert not torch.allclose(*(gradients["shape_prior.decoder.projection.weight"] for gradients in alone))


@pytest.mark.skipif("fully_shard" not in worker.WRAPPERS, reason="this release of PyTorch has no fully_shard")
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("where", worker.TAPPED)
def test_replays_of_sharded_models(results: list[dict[Any, Any]], where: str, detach: bool) -> None:
    for number in range(worker.STEPS):
        first, second = (rank[where, detach, number] for rank in results)
        alone = [worker.expected_gradients(detach, number, rank) for rank in range(RANKS)]
        for parameter, gradient in first.items():
            assert torch.equal(gradient, second[parameter]), parameter
            mean = sum(gradients[parameter] for gradients in alone) / RANKS
            torch.testing.assert_close(gradient, mean, rtol=1e-10, atol=1e-12)
