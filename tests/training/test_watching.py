"""Hard examples in the middle of a training: scores counted by hand, figures, and a training that takes no notice."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentaug.training.watching import HardExampleLog, ShowHardExamples, examine, top_tenth
from tests.support.tiny_training import same_weights, squares, tiny_coop, tiny_trainer, weights_of


def batch(**options: Any) -> tuple[Tensor, Tensor]:
    images, labels = next(iter(squares(batch_size=6, shuffle=False, **options)))
    return images, labels


def dice_by_hand(predicted: Tensor, labels: Tensor, classes: int = 3) -> float:
    scores = []
    for index in range(classes):
        own, right = predicted == index, labels == index
        if total := int(own.sum() + right.sum()):
            scores.append(2 * int((own & right).sum()) / total)
    return sum(scores) / len(scores)


def test_scores_are_those_of_the_explanation_counted_by_hand() -> None:
    coop, (images, labels) = tiny_coop(), batch()
    found, scores = examine(coop, images, labels, seed=3)
    assert scores["dice"] == pytest.approx(dice_by_hand(coop.predict(images, refine=0), labels))
    assert scores["hard_segmentation_dice"] == pytest.approx(dice_by_hand(found.hard_segmentation.argmax(1), labels))
    assert found.hard_images is not None
    hard = coop.predict(found.hard_images, refine=0)
    assert scores["hard_image_dice"] == pytest.approx(dice_by_hand(hard, labels))
    assert found.shape_factor is not None
    entries = found.shape_factor.flatten().tolist()
    assert scores["shape_masked"] == pytest.approx(sum(entry < 1 for entry in entries) / len(entries))
    assert scores == examine(coop, images, labels, seed=3).scores


def test_concentration_is_a_tenth_where_even_and_one_where_all_is_in_a_channel() -> None:
    even, single = torch.ones(2, 30, 2, 2), torch.zeros(2, 30, 4)
    single[:, 7] = -1
    assert float(top_tenth(even)) == pytest.approx(0.1)
    assert float(top_tenth(single)) == 1
    assert float(top_tenth(torch.cat([single[:1], torch.zeros(1, 30, 4)]))) == 0.5  # where nothing is salient: 0


def test_without_an_image_decoder_only_segmentations_are_scored() -> None:
    scores = examine(tiny_coop(reconstruction=False, shape_prior=False), *batch()).scores
    assert {"dice", "hard_segmentation_dice"} <= scores.keys()
    assert not any(name.startswith(("image", "hard_image")) for name in scores)


def test_what_has_no_hard_examples_is_refused_when_a_fit_starts() -> None:
    with pytest.raises(TypeError, match="those of a CooperativeModel; got Conv2d"):
        examine(nn.Conv2d(1, 2, 3), *batch())
    with pytest.raises(ValueError, match="every must be a whole number, 1 or more; got 0"):
        ShowHardExamples(*batch(), every=0)
    with pytest.raises(ValueError, match=r"draws images \[B, C, H, W\] .* got \(6, 1, 64\)"):
        ShowHardExamples(batch()[0].flatten(2), batch()[1].flatten(1))
    images, labels = batch()
    trainer = tiny_trainer(callbacks=[ShowHardExamples(images, labels[:3], show=print)])
    with pytest.raises(ValueError, match="labels"):
        trainer.fit(squares(), epochs=1)
    assert trainer.global_step == 0


def test_spread_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("latentaug.training.watching.is_spread", lambda model: True)
    for callback in (ShowHardExamples(*batch(), show=print), HardExampleLog(tmp_path, *batch())):
        with pytest.raises(ValueError, match="spread over processes, as by FSDP"):
            tiny_trainer(callbacks=[callback]).fit(squares(), epochs=1)


def test_a_watched_training_takes_the_course_that_it_takes_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")

    def trained(*callbacks: Any) -> tuple[dict[str, Tensor], Tensor]:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the stream that the data set draws from
        trainer = tiny_trainer()  # seeds that of torch
        trainer.callbacks += callbacks
        trainer.fit(squares(), squares(), epochs=2)
        return weights_of(trainer), torch.rand(3)

    figures: list[Any] = []
    alone, after = trained()
    watched, after_watched = trained(
        ShowHardExamples(*batch(), every=2, samples=1, show=figures.append),
        HardExampleLog(tmp_path, *batch(), samples=1),
    )
    assert same_weights(alone, watched)
    assert torch.equal(after, after_watched)
    assert len(figures) == 1  # after the second of two epochs
    assert figures[0].axes[0].get_title() == "image and labels"


def test_tensorboard_gets_a_curve_of_each_score_and_a_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    watched = batch()
    trainer = tiny_trainer(callbacks=[HardExampleLog(tmp_path / "with", *watched, samples=2)])
    trainer.fit(squares(), epochs=2)
    events = EventAccumulator(str(tmp_path / "with")).Reload()
    scores = examine(trainer.model, *watched).scores
    assert set(events.Tags()["scalars"]) == {f"hard/{name}" for name in scores}
    points = events.Scalars("hard/hard_segmentation_dice")
    assert [point.step for point in points] == [3, 6]
    assert points[-1].value == pytest.approx(scores["hard_segmentation_dice"])
    assert [image.step for image in events.Images("hard examples")] == [3, 6]

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    tiny_trainer(callbacks=[HardExampleLog(tmp_path / "without", *batch())]).fit(squares(), epochs=1)
    assert EventAccumulator(str(tmp_path / "without")).Reload().Tags()["images"] == []


def test_a_missing_notebook_or_tensorboard_is_said_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for callback, said in (
        (ShowHardExamples(*batch()), "ShowHardExamples needs IPython .* Elsewhere pass show="),
        (HardExampleLog(tmp_path, *batch()), "HardExampleLog needs the package tensorboard"),
    ):
        trainer = tiny_trainer(callbacks=[callback])
        with pytest.raises(ModuleNotFoundError, match=said):
            trainer.fit(squares(), epochs=1)
        assert trainer.global_step == 0


def test_a_wrapped_model_is_looked_into() -> None:
    coop, watched = tiny_coop(), batch()
    assert examine(nn.DataParallel(coop, device_ids=[]), *watched).scores == examine(coop, *watched).scores


@pytest.mark.slow
def test_in_a_notebook_the_bar_moves_and_the_figure_shows_once() -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    first = """
from latentaug import ShowHardExamples
from latentaug.training.callbacks import Progress
from tests.support.tiny_training import squares, tiny_trainer
images, labels = next(iter(squares(batch_size=6)))
tiny_trainer(callbacks=[Progress(), ShowHardExamples(images, labels)]).fit(squares(), epochs=3)
"""
    second = """
from latentaug import describe
from latentaug.plot import plot_gallery
plot_gallery({"images": images})
"""
    cells = [new_code_cell(first), new_code_cell(second), new_code_cell("describe(tiny_trainer().model.model, images)")]
    book = new_notebook(cells=cells)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(Path(__file__).parents[2])}}).execute()
    trained, drawn, described = (cell.outputs for cell in book.cells)
    assert ["image/png" in output.get("data", {}) for output in trained].count(True) == 1
    bar = "".join(output.text for output in trained if output.output_type == "stream")
    assert "9/9" in bar
    assert bar.count("\r") > 1
    assert [sorted(output.data) for output in drawn] == [["image/png", "text/plain"]]
    assert "<table>" in described[0].data["text/html"]
