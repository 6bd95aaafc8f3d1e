"""Two processes train one model: their gradients, losses, stops, checkpoints and evaluations are of all ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import together
from tests.distributed.worker import cooperative

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]

ROOT = Path(__file__).parents[2]
RANKS = 2
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> Found:
    """What every rank found, by check."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    commands = [[sys.executable, together.__file__, str(rank), str(RANKS), str(folder)] for rank in range(RANKS)]
    ranks = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    try:
        for rank in ranks:
            output, _ = rank.communicate(timeout=540)
            assert rank.returncode == 0, output
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(RANKS)]


# Gradients ------------------------------------------------------------------------------------------------------------


def alone(name: str, rank: int, steps: int = 1) -> dict[str, Any]:
    model = cooperative(name)
    for _ in range(steps):
        together.step(model, rank)
    return together.gradients_of(model)


CASES = [*((name, way) for name in together.GRADIENTS for way in ("bare", "twice")), ("unet", "held")]
if together.HAS_FULLY_SHARD:
    CASES.append(("unet", "network sharded"))


@pytest.mark.parametrize(("name", "way"), CASES)
def test_gradients_are_averaged_where_no_wrapper_does(results: Found, name: str, way: str) -> None:
    first, second = (found["averaged"][name, way] for found in results)
    own = [alone(name, rank, steps=2 if way == "twice" else 1) for rank in range(RANKS)]
    for parameter, gradient in first.items():
        assert torch.equal(gradient, second[parameter]), parameter
        mean = sum(gradients[parameter] for gradients in own) / RANKS
        torch.testing.assert_close(gradient, mean, rtol=1e-10, atol=1e-14)
    assert not torch.allclose(*(gradients["shape_prior.decoder.projection.weight"] for gradients in own))


def test_independent_models_keep_their_own_gradients(results: Found) -> None:
    for rank in range(RANKS):
        found, own = results[rank]["averaged"]["unet", "alone"], alone("unet", rank)
        assert all(torch.equal(found[key], own[key]) for key in own)


def test_a_parameter_that_some_ranks_use_counts_as_zero_on_the_others(results: Found) -> None:
    own = [together.uneven_gradients(rank) for rank in range(RANKS)]
    assert own[0]["model.now_and_then.weight"] is None
    for found in results:
        for name, gradient in found["averaged"]["uneven"].items():
            if name.startswith("model.never"):
                assert gradient is None
            else:
                there = [gradients[name] for gradients in own if gradients[name] is not None]
                torch.testing.assert_close(gradient, sum(there) / RANKS, rtol=1e-10, atol=1e-14)


def test_ranks_that_begin_with_other_weights_are_refused(results: Found) -> None:
    for found in results:
        assert "All ranks must begin with the same weights" in found["averaged"]["other weights"]
