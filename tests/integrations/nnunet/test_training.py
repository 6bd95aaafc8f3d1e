"""What the trainers add to nnU-Net's, on a stand-in that has of its trainer what they rely on."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentaug import (
    GIN,
    Compose,
    CooperativeModel,
    HardExamples,
    LatentTransform,
    MixStyle,
    MoEx,
    OutputLoss,
    cooperative_backward,
)
from latentaug.integrations.nnunet.training import (
    ChangesCodes,
    ChangesImages,
    Cooperative,
    FineTunes,
    Stock,
    stock_name,
)


class Network(nn.Module):
    """Two levels, a skip connection, and outputs at two resolutions, as under deep supervision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.coarse, self.fine = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        skip = self.first(images).relu()
        code = self.second(skip).relu()
        return [self.fine(torch.cat([skip, self.up(code)], 1)), self.coarse(code)]


def deep_loss(outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
    terms = [F.cross_entropy(one, target.squeeze(1).long()) for one, target in zip(outputs, targets, strict=True)]
    return terms[0] + 0.5 * terms[1]


class Stand:
    """Has of `nnUNetTrainer` what the mixins use."""

    __module__ = "nnunetv2.training"

    def __init__(self, folder: Path, network: nn.Module | None = None, **changed: Any) -> None:
        self.device, self.is_ddp, self.local_rank, self.grad_scaler = torch.device("cpu"), False, 0, None
        self.is_cascaded, self.disable_checkpointing, self.was_initialized = False, False, False
        self.configuration_name, self.fold, self.current_epoch, self.num_iterations_per_epoch = "2d", 0, 0, 4
        self.plans_manager = SimpleNamespace(dataset_name="Dataset001_Balls", plans_name="nnUNetPlans")
        self.label_manager = SimpleNamespace(num_segmentation_heads=3)
        self.output_folder_base = str(folder / f"{type(self).__name__}__nnUNetPlans__2d")
        self.network, self.loss, self.said, self.stock_steps = network or Network(), deep_loss, [], 0
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)
        vars(self).update(changed)

    def initialize(self) -> None:
        self.was_initialized = True

    def on_train_start(self) -> None: ...

    def on_train_epoch_start(self) -> None:
        self.network.train()

    def print_to_log_file(self, *said: object) -> None:
        self.said.append(" ".join(map(str, said)))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.stock_steps += 1
        self.optimizer.zero_grad()
        loss = self.loss(self.network(batch["data"]), batch["target"])
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.optimizer.step()
        return {"loss": loss.detach().cpu().numpy()}

    def save_checkpoint(self, filename: str) -> None:
        if not self.disable_checkpointing:
            weights = self.network.state_dict()
            torch.save({"network_weights": weights, "trainer_name": type(self).__name__}, filename)


class CooperativeStand(Cooperative, Stand): ...


class FineTuneStand(FineTunes, CooperativeStand):
    starts_from = "Stand"


class GINStand(ChangesImages, Stand):
    def new_transform(self) -> LatentTransform:
        return GIN()


class MixStyleStand(ChangesCodes, Stand):
    def new_transform(self) -> LatentTransform:
        return MixStyle(p=1.0)


def batch() -> dict[str, Any]:
    """Eight images, each of another contrast, with targets at two resolutions."""
    labels = torch.randint(3, (8, 1, 16, 16)).float()
    images = torch.randn(8, 1, 16, 16) * torch.arange(1, 9).view(8, 1, 1, 1)
    return {"data": images, "target": [labels, labels[..., ::2, ::2]]}


def test_every_third_step_learns_from_a_replay_and_the_others_are_stock(tmp_path: Path) -> None:
    trainer = CooperativeStand(tmp_path)
    trainer.on_train_epoch_start()
    counts = [trainer.stock_steps for _ in range(6) if trainer.train_step(batch())]
    assert counts == [1, 2, 2, 3, 4, 4]
    assert trainer.said == ["latentaug: in every 3. step, replays from masked second"]


def test_steps_are_counted_from_the_epoch_so_that_a_training_goes_on_as_it_would_have(tmp_path: Path) -> None:
    whole, resumed = CooperativeStand(tmp_path), CooperativeStand(tmp_path, current_epoch=1)
    for trainer, epochs in ((whole, 2), (resumed, 1)):
        for _ in range(epochs):
            trainer.on_train_epoch_start()
            before = trainer.stock_steps
            kinds = [trainer.stock_steps for _ in range(4) if trainer.train_step(batch())]
            kinds = [kind - before for kind in kinds]
            trainer.current_epoch += 1
        assert kinds == [1, 1, 2, 3]  # the sixth step of all has the replay


def test_a_step_has_the_gradients_of_the_loss_and_of_its_replay(tmp_path: Path) -> None:
    trainer, given = CooperativeStand(tmp_path), batch()
    network = copy.deepcopy(trainer.network)
    trainer.every = 1
    trainer.on_train_epoch_start()
    torch.manual_seed(0)
    said = trainer.train_step(given)["loss"]
    model = CooperativeModel(
        network,
        num_classes=3,
        example=given["data"],
        loss=OutputLoss(deep_loss),
        image_range=None,
        hard=HardExamples(every=1),
    )
    torch.manual_seed(0)
    output = cooperative_backward(model.train(), given["data"], given["target"])
    assert {*output.losses} == {"segmentation", "hard_code_segmentation"}
    assert said == output.losses["segmentation"].numpy()
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    torch.optim.SGD(network.parameters(), 0.1).step()
    for name, value in network.state_dict().items():
        assert torch.equal(value, trainer.network.state_dict()[name]), name


def test_the_network_stays_nnunets_own(tmp_path: Path) -> None:
    trainer = CooperativeStand(tmp_path)
    before = copy.deepcopy(vars(trainer.network))
    trainer.on_train_epoch_start()
    for _ in range(3):
        trainer.train_step(batch())
    assert vars(trainer.network).keys() == before.keys()
    assert type(trainer.network) is Network
    assert not any(module._forward_hooks for module in trainer.network.modules())


@pytest.mark.parametrize("kind", [GINStand, MixStyleStand])
def test_images_or_codes_are_changed_in_a_stock_step(tmp_path: Path, kind: type[Stand]) -> None:
    torch.manual_seed(0)
    given, network = batch(), Network()
    plain, changed = Stand(tmp_path, copy.deepcopy(network)), kind(tmp_path, network)
    losses = [float(trainer.train_step(given)["loss"]) for trainer in (plain, changed)]
    assert changed.stock_steps == 1
    assert losses[0] != losses[1]
    network.eval()
    assert torch.equal(network(given["data"])[0], copy.deepcopy(network)(given["data"])[0])


def test_the_second_stage_of_a_cascade_is_refused(tmp_path: Path) -> None:
    trainer = CooperativeStand(tmp_path, is_cascaded=True, configuration_name="3d_cascade_fullres")
    with pytest.raises(RuntimeError, match="CooperativeStand trains no second stage of a cascade; got 3d_cascade_full"):
        trainer.initialize()


@pytest.mark.parametrize("name", ["final", "best", "latest"])
def test_beside_a_checkpoint_to_predict_with_lies_one_under_the_stock_name(tmp_path: Path, name: str) -> None:
    trainer = CooperativeStand(tmp_path)
    trainer.save_checkpoint(str(tmp_path / f"checkpoint_{name}.pth"))
    expected = {f"checkpoint_{name}.pth"} | ({f"checkpoint_{name}_stock.pth"} if name != "latest" else set())
    assert {path.name for path in tmp_path.iterdir()} == expected
    names = {path.name: torch.load(path, weights_only=False)["trainer_name"] for path in tmp_path.iterdir()}
    assert names[f"checkpoint_{name}.pth"] == "CooperativeStand"
    assert names.get(f"checkpoint_{name}_stock.pth", "Stand") == "Stand"


def test_no_checkpoint_is_written_where_nnunet_writes_none(tmp_path: Path) -> None:
    CooperativeStand(tmp_path, disable_checkpointing=True).save_checkpoint(str(tmp_path / "checkpoint_final.pth"))
    CooperativeStand(tmp_path, local_rank=1, disable_checkpointing=True).save_checkpoint(str(tmp_path / "a.pth"))
    assert not [*tmp_path.iterdir()]


def test_fine_tuning_starts_from_the_finished_training_of_the_same_fold(tmp_path: Path) -> None:
    stock = Stand(tmp_path)
    trainer = FineTuneStand(tmp_path)
    with pytest.raises(FileNotFoundError, match="nnUNetv2_train Dataset001_Balls 2d 0 -tr Stand -p nnUNetPlans"):
        trainer.on_train_start()
    folder = Path(stock.output_folder_base, "fold_0")
    folder.mkdir(parents=True)
    stock.save_checkpoint(str(folder / "checkpoint_final.pth"))
    trainer.on_train_start()
    assert all(map(torch.equal, trainer.network.state_dict().values(), stock.network.state_dict().values()))
    begun = FineTuneStand(tmp_path, current_epoch=1)
    before = copy.deepcopy(begun.network.state_dict())
    begun.on_train_start()
    assert all(map(torch.equal, begun.network.state_dict().values(), before.values()))


def test_the_stock_name_is_that_of_the_trainer_that_nnunet_has_itself() -> None:
    assert stock_name(FineTuneStand) == "Stand"
    assert issubclass(FineTuneStand, Stock)


def test_the_command_prints_one_folder_that_holds_the_trainers_alone() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "latentaug.integrations.nnunet"]
    folder = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.removesuffix("\n"))
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert names == {"latentaug_trainers.py"}


@pytest.mark.parametrize("kind", [ChangesCodes, ChangesImages])
def test_a_transform_that_mixes_labels_is_refused(kind: type, tmp_path: Path) -> None:
    class Mixes(kind, Stand):
        def new_transform(self) -> LatentTransform:
            return Compose([MoEx()])

    with pytest.raises(ValueError, match=r"Mixes trains on labels as they are, and MoEx mixes them"):
        Mixes(tmp_path).train_step(batch())
