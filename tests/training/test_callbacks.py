"""What callbacks hear, write and show."""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from latentaug.training.callbacks import Callback, CSVLog, Progress, Ramp, TensorBoardLog, default_callbacks
from latentaug.training.trainer import CooperativeTrainer
from tests.support.tiny_training import (
    At,
    squares,
    tiny_coop,
    tiny_trainer,
)


def test_callbacks_hear_of_every_moment_in_order() -> None:
    heard: list[str] = []

    class Listen(Callback):
        def on_start(self, trainer: Any) -> None:
            heard.append(f"start {trainer.planned_steps}")

        def on_step(self, trainer: Any, losses: Any) -> None:
            heard.append(f"step {trainer.global_step}")

        def on_epoch(self, trainer: Any, metrics: Any) -> None:
            heard.append(f"epoch {metrics['epoch']}")

        def on_end(self, trainer: Any) -> None:
            heard.append("end")

    tiny_trainer(callbacks=[Listen()], accumulate=2).fit(squares(), epochs=2)
    assert heard == ["start 4", "step 1", "step 2", "epoch 1", "step 3", "step 4", "epoch 2", "end"]


@pytest.mark.parametrize("step", [2, 3])
def test_a_callback_can_stop_the_fit(step: int) -> None:
    trainer = tiny_trainer(callbacks=[At(step, lambda trainer: trainer.stop())])
    trainer.fit(squares(), epochs=5)
    assert trainer.global_step == step
    assert trainer.epoch == (1 if step == 3 else 0)  # the third is the last of the epoch
    trainer.fit(squares(), epochs=2)
    assert trainer.global_step == 6


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_log_holds_the_history(tmp_path: Path) -> None:
    trainer = tiny_trainer(callbacks=[CSVLog(tmp_path / "logs" / "log.csv")])
    trainer.fit(squares(), epochs=1)
    trainer.fit(squares(), squares(), epochs=3)  # columns that come later are filled from then on
    rows = read_rows(tmp_path / "logs" / "log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["val_iou"] == "" for row in rows] == [True, False, False]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in trainer.history]


def test_tensorboard_gets_every_metric(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = tiny_trainer(callbacks=[TensorBoardLog(tmp_path)])
    trainer.fit(squares(), squares(), epochs=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == set(trainer.history[0])
    points = events.Scalars("val_refined_iou")
    assert [point.step for point in points] == [3, 6]
    assert [point.value for point in points] == pytest.approx([row["val_refined_iou"] for row in trainer.history])


def test_tensorboard_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="TensorBoardLog needs the package tensorboard"):
        tiny_trainer(callbacks=[TensorBoardLog(tmp_path)]).fit(squares(), epochs=1)


def test_without_callbacks_given_there_is_progress_and_with_a_folder_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds(folder: Any) -> list[str]:
        return [type(callback).__name__ for callback in default_callbacks(folder)]

    assert kinds(None) == ["Progress"]
    assert [type(callback) for callback in CooperativeTrainer(tiny_coop()).callbacks] == [Progress]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kinds(tmp_path) == ["Progress", "CSVLog"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert kinds(tmp_path) == ["Progress", "CSVLog", "TensorBoardLog"]


def test_progress_is_a_line_per_epoch_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny_trainer(callbacks=[Progress()])
    trainer.fit(squares(), squares(), epochs=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(", ")[:2] for line in lines] == [["epoch 1", "step 3"], ["epoch 2", "step 6"]]
    assert "0:00:00 left" in lines[1]
    assert all("loss" in line and "val_refined_iou" in line for line in lines)
    trainer.fit((batch for batch in squares()), epochs=3)
    assert "left" not in capsys.readouterr().err  # a stream of unknown length


def test_progress_tells_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(0, 100)
    monkeypatch.setattr("latentaug.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tiny_trainer(callbacks=[Progress()]).fit(squares(), epochs=2)
    assert [line.split(", ")[-1] for line in capsys.readouterr().err.splitlines()] == ["0:01:40 left", "0:00:00 left"]


def test_progress_lines_keep_their_distance_but_for_the_first_and_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0, 10)
    monkeypatch.setattr("latentaug.training.callbacks.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tiny_trainer(callbacks=[Progress(every=30)]).fit(squares(), epochs=9)
    shown = [line.split(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["epoch 1", "epoch 4", "epoch 7", "epoch 9"]
    trainer = tiny_trainer(callbacks=[Progress(every=30)])
    trainer.callbacks.append(At(7, lambda trainer: trainer.stop()))
    trainer.fit(squares(), epochs=9)
    assert capsys.readouterr().err.splitlines()[-1].startswith("epoch 3, step 7")


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    tiny_trainer(callbacks=[Progress()]).fit(squares(), squares(), epochs=2)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "val_refined_iou" in shown
    assert "epoch 1," not in shown


def test_a_ramp_follows_from_the_step_number_and_ends_whole(tmp_path: Path) -> None:
    def ramped(seen: list[dict[str, float]]) -> tuple[CooperativeTrainer, dict[str, float]]:
        model = tiny_coop(weights={"hard_image_reconstruction": 2.0, "segmentation": 3.0})
        steps = [At(step, lambda _: seen.append(dict(model.weights))) for step in range(1, 7)]
        trainer = tiny_trainer(model)
        trainer.callbacks += [*steps, Ramp(model, 4)]
        return trainer, dict(model.weights)

    seen = []
    trainer, whole = ramped(seen)
    trainer.fit(squares(), max_steps=3)
    assert trainer.model.weights == whole
    trainer.save(tmp_path / "begun.pt")
    resumed, _ = ramped(seen)
    resumed.resume(tmp_path / "begun.pt")
    resumed.fit(squares(), max_steps=6)
    shares = {name: [weights[name] / whole[name] for weights in seen] for name in whole if whole[name]}
    rising = [0.25, 0.5, 0.75, 1, 1, 1]
    hard = ("hard_image_segmentation", "hard_image_reconstruction", "shape_from_hard_image")
    assert all(shares[name] == rising for name in (*hard, "shape_from_hard_segmentation"))
    assert all(share == [1] * 6 for name, share in shares.items() if "hard" not in name)
    assert resumed.model.weights == whole


def test_a_ramp_that_starts_later_makes_no_hard_examples_before() -> None:
    model, hard = tiny_coop(), []

    class Watched(Callback):
        def on_step(self, trainer: Any, losses: Mapping[str, Any]) -> None:
            hard.append(any("hard" in name for name in losses))

    trainer = tiny_trainer(model)
    trainer.callbacks += [Watched(), Ramp(model, 1, start=2)]
    trainer.fit(squares(), max_steps=4)
    assert hard == [False, False, True, True]


@pytest.mark.parametrize(
    ("steps", "start", "said"),
    [
        (0, 0, "steps must be a finite number above 0; got 0"),
        (1, -1, "start must be a finite number, 0 or more; got -1"),
        (1, float("nan"), "start must be a finite number, 0 or more; got nan"),
    ],
)
def test_a_ramp_of_no_length_or_before_the_training_is_refused(steps: float, start: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ramp(tiny_coop(), steps, start=start)
