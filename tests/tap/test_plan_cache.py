"""What all taps of one model share: plans that are made once, and again where passes differ."""

from __future__ import annotations

import gc
import logging
import random
import sys
import threading
import weakref

import pytest
import torch
from torch import Tensor

from latentaug.tap.latent_tap import LatentTap
from tests.models.hostile.inconsistent import Shrinks, Wanders
from tests.models.unet import UNet, unet
from tests.support.counting import CountOperations
from tests.support.random_streams import seed_all
from tests.support.traces import traces


def test_the_plan_is_made_once(model: UNet, images: Tensor) -> None:
    passes = []
    model.head.register_forward_pre_hook(lambda *_: passes.append(1))
    with LatentTap(model, "encoder[1]"):
        model(images)
    assert len(passes) > 1
    passes.clear()
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
        tap.replay(None)
    assert len(passes) == 2
    passes.clear()
    model.encoder.norm.eval()  # another mode, another plan
    model.encoder.norm.train()
    with LatentTap(model, "encoder[1]"):
        model(images)
    assert len(passes) > 1


def test_batches_of_other_sizes_use_the_same_plan(model: UNet, images: Tensor) -> None:
    for batch in (images, images[:1], torch.cat([images, images]).repeat(1, 1, 2, 1)):
        with LatentTap(model, "encoder[1]") as tap:
            logits = model(batch)
            assert torch.equal(tap.replay(tap.code), logits)
            assert tap.layers[0].shape == tuple(tap.code.shape)


def test_a_model_that_calls_other_modules_each_time_is_replayed_in_full_and_says_so_once(
    images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    torch.manual_seed(0)
    model = Wanders().double()
    for seed in range(12):
        with LatentTap(model, "code") as tap:
            seed_all(seed)
            logits = model(images)
            after = random.random()
            assert torch.equal(tap.replay(tap.code), logits)
            assert torch.equal(tap.replay(tap.code, full=True), logits)
        seed_all(seed)
        assert torch.equal(model(images), logits)
        assert random.random() == after
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("Wanders is replayed in full, because it does not call the same modules in every pass")


def test_a_model_that_changes_once_is_planned_anew(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    model = Shrinks().double()
    for depth, passes in ((3, 2), (1, 2)):
        model.depth = depth
        for _ in range(passes):
            with LatentTap(model, "code") as tap:
                logits = model(images)
                with torch.no_grad(), CountOperations() as convolutions:
                    assert torch.equal(tap.replay(tap.code), logits)
        assert convolutions.count == 1  # the head's; everything before is skipped again
    assert not caplog.records


def test_a_model_that_changes_again_is_replayed_in_full(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "latentaug")
    model = Shrinks().double()
    for depth in (3, 2, 2, 1, 1, 3):
        model.depth = depth
        with LatentTap(model, "code") as tap:
            logits = model(images)
            with torch.no_grad(), CountOperations() as operations:
                assert torch.equal(tap.replay(tap.code), logits)
    assert operations.count == 5  # three blocks, the code, the head
    assert len(caplog.records) == 1


def test_threads_take_turns_on_one_model(model: UNet, images: Tensor) -> None:
    before, errors, results = traces(model), [], {}

    def work(number: int) -> None:
        try:
            for _ in range(5):
                with LatentTap(model, "encoder[1]") as tap:
                    logits = model(images * number)
                    results[number] = torch.equal(tap.replay(tap.code), logits)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert results == dict.fromkeys(range(1, 5), True)
    assert traces(model) == before


def test_models_are_collectable(images: Tensor) -> None:
    model = unet()
    with LatentTap(model, "encoder[1]") as tap:
        model(images)
    reference = weakref.ref(model)
    del model, tap
    gc.collect()
    assert reference() is None
