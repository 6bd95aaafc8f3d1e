"""nnU-Net's own commands on small files: plan, train in 2-D and 3-D, go on, fine-tune, predict without latentaug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("nnunetv2")
pytestmark = [pytest.mark.slow, pytest.mark.integration]

DATASET, SIZE = "Dataset001_Balls", (12, 32, 32)
SHORT = """
import torch
from latentaug.integrations.nnunet.trainers import latentaug_trainers as trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def short(base, name):
    class Short(base):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = EPOCHS, 3, 1

    Short.__name__ = Short.__qualname__ = name
    return Short


for one in ("Cooperative", "CooperativeFineTune", "MixStyle", "RandConv", "GIN"):
    globals()[f"Short{one}"] = short(getattr(trainers, f"nnUNetTrainer{one}"), f"Short{one}")
ShortCooperativeFineTune.starts_from = "ShortCooperative"
"""
WITHOUT = """
import sys


class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "latentaug":
            raise ModuleNotFoundError("latentaug is not installed")


sys.meta_path.insert(0, Without())
"""


class Workplace:
    """A folder with nnU-Net's three, and commands that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "extra").mkdir()
        (folder / "without").mkdir()
        (folder / "without" / "sitecustomize.py").write_text(WITHOUT)
        self.last_for(2)
        printed = subprocess.run(
            [sys.executable, "-m", "latentaug.integrations.nnunet"], capture_output=True, text=True, check=True
        )
        self.environment = {
            **os.environ,
            **{f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")},
            "nnUNet_extTrainer": os.pathsep.join([str(folder / "extra"), printed.stdout.strip()]),
            "nnUNet_n_proc_DA": "1",
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def last_for(self, epochs: int) -> None:
        """Set how many epochs the short trainers have."""
        (self.folder / "extra" / "short_trainers.py").write_text(SHORT.replace("EPOCHS", str(epochs)))

    def run(self, command: str, **environment: str) -> str:
        """Run one of nnU-Net's commands; return what it said."""
        name, *arguments = command.split()
        program = str(Path(sys.executable).with_name(name))
        done = subprocess.run(
            [program, *arguments],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def train(self, trainer: str, configuration: str = "2d", *flags: str) -> str:
        """Train on fold 0."""
        return self.run(" ".join(["nnUNetv2_train 1", configuration, "0 -device cpu -tr", trainer, *flags]))

    def checkpoint(self, trainer: str, name: str = "final", configuration: str = "2d") -> Mapping[str, object]:
        """Read a checkpoint of fold 0."""
        folder = self.folder / "results" / DATASET / f"{trainer}__nnUNetPlans__{configuration}" / "fold_0"
        found: Mapping[str, object] = torch.load(folder / f"checkpoint_{name}.pth", weights_only=False)
        return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    import SimpleITK as sitk

    place = Workplace(tmp_path_factory.mktemp("nnunet"))
    raw = place.folder / "raw" / DATASET
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in SIZE], indexing="ij"))
    for case in range(6):
        centre = rng.uniform(-0.3, 0.3, (3, 1, 1, 1))
        labels = (np.square(grid - centre).sum(0) < 0.4).astype(np.uint8)
        image = (labels * rng.uniform(0.5, 1.5) + 0.3 * rng.standard_normal(SIZE)).astype(np.float32)
        last = case == 5
        for folder, name, array in (("images", "_0000", image), ("labels", "", labels)):
            target = raw / f"{folder}{'Ts' if last else 'Tr'}"
            target.mkdir(parents=True, exist_ok=True)
            written = sitk.GetImageFromArray(array)
            written.SetSpacing((1, 1, 2.5))
            sitk.WriteImage(written, str(target / f"case{case}{name}.nii.gz"))
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "ball": 1}, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps(about | {"file_ending": ".nii.gz"}))
    place.run("nnUNetv2_plan_and_preprocess -d 1 -c 2d 3d_fullres -np 1 1 -npfp 1")
    said = place.train("ShortCooperative")
    assert "latentaug: in every 3. step, replays from masked encoder" in said
    assert "Mean Validation Dice" in said
    return place


def predict(place: Workplace, to: str, *flags: str, **environment: str) -> np.ndarray:
    import SimpleITK as sitk

    options = f"-i raw/{DATASET}/imagesTs -o {to} -d 1 -c 2d -f 0 -tr ShortCooperative -device cpu -npp 1 -nps 1"
    place.run(" ".join(["nnUNetv2_predict", options, *flags]), **environment)
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(place.folder / to / "case5.nii.gz"))))


def test_it_predicts_the_same_where_latentaug_is_not_installed(workplace: Workplace) -> None:
    with_it = predict(workplace, "with")
    without = {"nnUNet_extTrainer": "", "PYTHONPATH": str(workplace.folder / "without")}
    assert np.array_equal(with_it, predict(workplace, "out", "-chk checkpoint_final_stock.pth", **without))
    own, stock = (workplace.checkpoint("ShortCooperative", name) for name in ("final", "final_stock"))
    assert (own["trainer_name"], stock["trainer_name"]) == ("ShortCooperative", "nnUNetTrainer")


def test_a_training_goes_on_from_its_checkpoint(workplace: Workplace) -> None:
    workplace.last_for(3)
    workplace.train("ShortCooperative", "2d", "--c")
    assert workplace.checkpoint("ShortCooperative")["current_epoch"] == 3


def test_fine_tuning_starts_from_it(workplace: Workplace) -> None:
    workplace.last_for(1)
    assert "latentaug: starts from" in workplace.train("ShortCooperativeFineTune")


@pytest.mark.parametrize("trainer", ["MixStyle", "RandConv", "GIN"])
def test_transforms_train_in_one_pass(workplace: Workplace, trainer: str) -> None:
    workplace.last_for(1)
    assert "Mean Validation Dice" in workplace.train(f"Short{trainer}")


def test_volumes_are_trained_on_whole(workplace: Workplace) -> None:
    workplace.last_for(1)
    assert "replays from masked encoder" in workplace.train("ShortCooperative", "3d_fullres")
