"""Two processes of Lightning's hold one model: what one process makes of the mean of their gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from latentaug import cooperative_backward  # noqa: E402
from tests.integrations.lightning import worker  # noqa: E402
from tests.integrations.lightning.parts import samples, seed_of, weights  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="needs the gloo backend"),
]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each rank has written what it trained."""
    folder = tmp_path_factory.mktemp("ranks")
    given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, worker.__file__, str(folder)]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def alone(name: str) -> dict[str, Any]:
    """Train one model on the mean of the gradients that each rank would have."""
    model = worker.case(name).coop.train()
    options = worker.CASES[name]
    optimizer = torch.optim.AdamW(model.parameters())
    accumulate, clip = options.get("accumulate", 1), options.get("clip_norm")
    images, labels = samples(12)
    for epoch in range(2):
        batches = [_order(rank, epoch) for rank in range(worker.RANKS)]
        for number in range(3):
            states = []
            before = model.state_dict()
            for rank in range(worker.RANKS):
                taken = batches[rank][2 * number : 2 * number + 2]
                os.environ["LOCAL_RANK"] = str(rank)
                model.load_state_dict({**before, **{key: value.clone() for key, value in before.items()}})
                torch.manual_seed(seed_of(epoch, number, rank))
                cooperative_backward(model, images[taken], labels[taken], scale=1 / accumulate / worker.RANKS)
                states.append(model.state_dict())
            if (number + 1) % accumulate == 0 or number == 2:
                if clip is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
    return weights(model)


@pytest.mark.parametrize("name", worker.CASES)
def test_ranks_hold_what_the_mean_of_their_gradients_makes(folder: Path, name: str, monkeypatch: Any) -> None:
    ranks = [torch.load(folder / f"{name} {rank}.pt", weights_only=True) for rank in range(worker.RANKS)]
    assert ranks[0]["metrics"] == pytest.approx(ranks[1]["metrics"], nan_ok=True)
    for key, value in ranks[0]["weights"].items():
        assert torch.equal(value, ranks[1]["weights"][key]), key
