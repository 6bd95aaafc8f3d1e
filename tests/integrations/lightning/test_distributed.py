"""Two processes of Lightning's hold one model: what one process makes of the mean of their gradients."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

pytest.importorskip("lightning")

from latentaug import cooperative_backward
from tests.integrations.lightning import worker
from tests.integrations.lightning.parts import SGD, samples, seed_of

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


def expected(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Train a copy for each rank, in turn, by the mean of their gradients."""
    options, ranks = worker.CASES[name], range(worker.RANKS)
    models = [worker.case(name).coop.train() for _ in ranks]
    optimizers = [SGD(model.parameters()) for model in models]
    images, labels = samples(12)
    samplers = [DistributedSampler(range(12), worker.RANKS, rank, seed=0) for rank in ranks]  # as Lightning shuffles
    for epoch, number in itertools.product(range(2), range(3)):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        drawn = [[*sampler][2 * number : 2 * number + 2] for sampler in samplers]
        if "lost" in name and any(worker.LOST in taken for taken in drawn):
            for model in models:
                model.hard_schedule()  # which has counted it
            continue
        for rank, (model, taken) in enumerate(zip(models, drawn, strict=True)):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            torch.manual_seed(seed_of(epoch, number, rank))
            cooperative_backward(model, images[taken], labels[taken], scale=1 / options.get("accumulate", 1))
        if (number + 1) % options.get("accumulate", 1) and number < 2:
            continue
        for same in zip(*(model.parameters() for model in models), strict=True):
            mean = sum(torch.zeros_like(one) if one.grad is None else one.grad for one in same) / len(same)
            for one in same:
                one.grad = mean.clone()
        for model, optimizer in zip(models, optimizers, strict=True):
            if "clip_norm" in options:
                torch.nn.utils.clip_grad_norm_(model.parameters(), options["clip_norm"])
            optimizer.step()
            optimizer.zero_grad()
    return {name: value.detach() for name, value in models[0].named_parameters()}


@pytest.mark.parametrize("name", worker.CASES)
def test_ranks_hold_what_the_mean_of_their_gradients_makes(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (torch.load(folder / f"{name} {rank}.pt", weights_only=True) for rank in range(worker.RANKS))
    assert first["metrics"] == pytest.approx(second["metrics"], rel=0, abs=0, nan_ok=True)
    assert first["metrics"].keys() >= {"loss", "train_loss", "val_loss", "val_dice"}
    for key, value in first["weights"].items():  # running statistics too
        assert torch.equal(value, second["weights"][key]), key
    for key, value in expected(name, monkeypatch).items():
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-4, atol=1e-6, msg=key)
