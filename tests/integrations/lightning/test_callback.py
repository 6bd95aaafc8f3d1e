"""One-pass transforms in the training steps of any LightningModule, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from latentaug import (
    Compose,
    DropBlock,
    ManifoldMixup,
    MixStyle,
    MoEx,
    RandConv,
    Schedule,
    TargetedChannelMask,
    augmented,
)
from latentaug.integrations.lightning import LatentAugmentation
from tests.integrations.lightning.parts import (
    SAFELY,
    SGD,
    Seeds,
    loader,
    module,
    network,
    samples,
    seed_of,
    trainer,
    weights,
)
from tests.support.belongings import belongings, differences

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


class Plain(LightningModule):
    """Somebody's own module, which has never heard of us."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.criterion = network(), nn.CrossEntropyLoss()
        self.validated: list[Tensor] = []
        self.fails_at = -1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.criterion(self.unet(batch[0]), batch[1])
        if batch_idx == self.fails_at:
            raise RuntimeError("somebody's own fault")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.unet.train()  # some do: transforms must not act even so
        self.validated.append(self.unet(batch[0]))
        self.unet.eval()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters())


def everywhere() -> dict[str, Any]:
    return {"stem": MixStyle(p=1), "down": DropBlock(p=0.3)}


def by_hand(change: Any, epochs: int = 1) -> nn.Module:
    """Train the same network on the same batches, each changed in a context of its own."""
    unet = network().train()
    optimizer = SGD(unet.parameters())
    for epoch in range(epochs):
        for number, (images, labels) in enumerate(loader()):
            torch.manual_seed(seed_of(epoch, number))
            optimizer.zero_grad()
            nn.functional.cross_entropy(change(unet, images), labels).backward()
            optimizer.step()
    return unet


def with_changed_codes(unet: nn.Module, images: Tensor) -> Tensor:
    with augmented(unet, everywhere()):
        return unet(images)


def placed(unet: nn.Module, images: Tensor) -> Tensor:
    with augmented(unet, MixStyle(p=1)):
        return unet(images)


CASES = {
    "layers": (everywhere, with_changed_codes),
    "placed": (lambda: MixStyle(p=1), placed),
    "images": (lambda: RandConv(p=1), lambda unet, images: unet(RandConv(p=1).augment(images))),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_a_loop_by_hand(name: str) -> None:
    transforms, change = CASES[name]
    trained = Plain()
    trainer(max_epochs=2, callbacks=[Seeds(), LatentAugmentation(transforms())]).fit(trained, loader(), loader(2))
    reference, plain = by_hand(change, 2), by_hand(lambda unet, images: unet(images), 2)
    for key, value in reference.named_parameters():
        assert torch.equal(value, trained.unet.get_parameter(key)), key
    assert not torch.equal(trained.unet.top.weight, plain.top.weight)


@pytest.mark.parametrize("name", CASES)
def test_validation_sees_the_network_as_it_is(name: str) -> None:
    trained = Plain()
    run = trainer(max_epochs=1, callbacks=[LatentAugmentation(CASES[name][0]())], num_sanity_val_steps=0)
    run.fit(trained, loader(2), loader(2))
    assert torch.equal(trained.validated[0], trained.unet.train()(samples(2)[0]))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fails_at", [-1, 1])
def test_nothing_is_left_behind(name: str, fails_at: int) -> None:
    def trained(*callbacks: Any) -> Plain:
        one = Plain()
        one.fails_at = fails_at
        run = trainer(callbacks=[Seeds(), *callbacks])
        if fails_at < 0:
            run.fit(one, loader())
        else:
            with pytest.raises(RuntimeError, match="somebody's own fault"):
                run.fit(one, loader())
        return one

    found, plain = trained(LatentAugmentation(CASES[name][0]())), trained()
    for one in (found, plain):
        assert not any("forward" in vars(part) for part in one.modules())
        one.load_state_dict(Plain().state_dict())  # what they learned differs
        one.zero_grad()
    assert not differences(belongings(found.unet), belongings(plain.unet))


def test_a_step_that_is_skipped_leaves_nothing_behind() -> None:
    class Skips(Plain):
        left_alone = False

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 1 else None  # for Lightning the rest of the epoch

        def on_train_epoch_end(self) -> None:
            self.left_alone = not any("forward" in vars(part) for part in self.unet.modules())

    trained = Skips()
    trainer(callbacks=[LatentAugmentation(everywhere())]).fit(trained, loader())
    assert trained.left_alone


def test_schedules_advance_with_each_update_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    def new() -> LatentAugmentation:
        rate = Schedule(0.0, 0.4, iterations=10)
        return LatentAugmentation({"stem": DropBlock(p=rate), "down": DropBlock(p=rate)})

    def at(callback: LatentAugmentation) -> int:
        return callback.transforms["down"].p.iteration

    first, again = new(), new()
    keeps = {"enable_checkpointing": True, "accumulate_grad_batches": 2}
    trainer(callbacks=[Seeds(), first, ModelCheckpoint(tmp_path, "one")], **keeps).fit(Plain(), loader())
    assert at(first) == 2
    resumed = trainer(max_epochs=2, callbacks=[Seeds(), again], accumulate_grad_batches=2)
    resumed.fit(Plain(), loader(), ckpt_path=tmp_path / "one.ckpt", **SAFELY)
    assert at(again) == 4


def test_several_are_kept_apart_in_a_checkpoint() -> None:
    keys = {LatentAugmentation(one).state_key for one in (MixStyle(), DropBlock(), {"stem": MixStyle()})}
    assert len(keys) == 3


def test_it_changes_the_network_of_a_cooperative_model() -> None:
    found = []
    for callbacks in ([], [LatentAugmentation({"stem": MixStyle(p=1)})], [LatentAugmentation(RandConv(p=1))]):
        trained = module(frugal=True)
        trainer(callbacks=[Seeds(), *callbacks]).fit(trained, loader())
        found.append(weights(trained)["coop.model.top.weight"])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_network_is_named_where_there_are_several() -> None:
    class Two(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(2, 2, 1)

    with pytest.raises(ValueError, match=r'Two has unet, head. Name it: network="model"'):
        trainer(callbacks=[LatentAugmentation(MixStyle())]).fit(Two(), loader())
    with pytest.raises(ValueError, match="network must name a part of Two; got 'net'"):
        trainer(callbacks=[LatentAugmentation(MixStyle(), network="net")]).fit(Two(), loader())
    trainer(callbacks=[LatentAugmentation(MixStyle(), network="unet")]).fit(Two(), loader())


@pytest.mark.parametrize("transform", [ManifoldMixup(), MoEx(), Compose([MoEx()])])
def test_transforms_that_mix_labels_are_refused(transform: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"mixes labels, of which a callback doesn't know\. Write in training_step"):
        LatentAugmentation(transform)
    LatentAugmentation(MoEx(labels="keep"))


def test_other_transforms_that_one_pass_cannot_give_are_refused() -> None:
    with pytest.raises(TypeError, match=r"asks for the saliency, for which one pass is not enough.*CooperativeModule"):
        LatentAugmentation({"down": TargetedChannelMask()})
    with pytest.raises(TypeError, match=r"needs transforms; got .* Pass an instance"):
        LatentAugmentation(MixStyle)
    with pytest.raises(TypeError, match="network must be a name"):
        LatentAugmentation(MixStyle(), network=network())
