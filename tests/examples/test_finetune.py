"""Fine-tuning a trained network, in a quick form."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch

import acdc_cooperative


def test_it_goes_on_from_the_weights_that_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    given = smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=3).state_dict()
    torch.save(given, tmp_path / "unet.pt")
    flags = ["--weights", str(tmp_path / "unet.pt"), "--trained-for", "10", "--output", str(tmp_path / "new.pt")]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *flags])
    ran = runpy.run_path(str(Path(acdc_cooperative.__file__).parent / "finetune.py"))
    assert ran["iterations"] == 1
    found = torch.load(tmp_path / "new.pt", weights_only=True)
    moved = {name: (found[name] - given[name]).abs().max().item() for name in given if name.endswith("weight")}
    assert 0 < max(moved.values()) <= 1e-4 * 1.01  # one step of Adam, at the low rate
    assert "after over before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--trained-for", "-5"], "--trained-for must be 1 or more"),
        (["--rate", "nan"], "--rate above 0"),
        (["--output", "absent/new.pt"], "--output absent/new.pt: must be a file, in a folder that is there"),
        (["--output", "."], "--output .: must be a file"),
        (["--weights", "checkpoint.pt"], "--weights checkpoint.pt: no state dict of this network, and of that alone"),
        (["--weights", "absent.pt"], "--weights absent.pt: no state dict of this network"),
        (["--weights", "note.txt"], "--weights note.txt: no state dict of this network"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("a note")
    torch.save({"state_dict": smp.Unet("resnet18", encoder_weights=None, in_channels=1).state_dict()}, "checkpoint.pt")
    monkeypatch.setattr(sys, "argv", ["finetune.py", *flags])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(Path(acdc_cooperative.__file__).parent / "finetune.py"))
    assert named in capsys.readouterr().err
