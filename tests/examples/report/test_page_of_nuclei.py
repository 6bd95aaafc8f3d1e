"""The page of a run of the nuclei study, from output folders that are written here without any training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from latentaug import FTN, CooperativeModel
from nuclei.images import Frame
from nuclei.study import KEPT, PICTURE
from study.report.page import PAGE, write_page
from study.report.summary import MEANINGS, summary_grid
from study.run.cases import BestAndWorst
from study.run.metrics import evaluate
from study.run.moments import Moments
from study.run.outputs import Outputs
from study.run.scores import read_scores, write_scores
from tests.support.page import Page

CONFIGURATION = {"preset": "cpu", "iterations": 10, "data": "generated"}
METHODS = {"plain": 0, "cooperative": 1}
LONG = "0123456789abcdef" * 4
SECTIONS = ["result", "summary", "differences", "curves", "parts", "cases", "moments", "settings", "notes"]


class Threshold(torch.nn.Module):
    """Stands for a trained model: takes what is bright for nuclei, but for some rows."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.lost = lost

    def forward(self, images: Tensor) -> Tensor:
        inside = images[:, 0] > 0.5
        inside[:, : self.lost] = False
        return torch.stack((-images[:, 0], torch.where(inside, 1.0, -3.0)), dim=1)


def image_of(name: str, height: int = 16, width: int = 16) -> Frame:
    """An image with bright nuclei; some of what is labelled is not bright."""
    random = np.random.default_rng(int.from_bytes(name.encode(), "little"))
    labels = (random.random((1, height, width)) > 0.6).astype(np.uint8)
    image = np.where(random.random(labels.shape) > 0.9, 0.4, labels).astype(np.float32)
    return Frame(name, "fluo", image, labels, (1.0, 1.0, 1.0))


def fill(outputs: Outputs, method: str) -> None:
    """Write what a training leaves in its folder."""
    place = outputs.place(method, 0)
    place.mkdir(parents=True)
    sets = {
        "fluo256": [image_of(f"own-{number}") for number in range(6)],
        "fluo520": [image_of("a", 20, 24), image_of("b", 16, 12)],
        "inverted/stained": [image_of(LONG, 2 * PICTURE, 24)],
    }
    watch, model = BestAndWorst(KEPT, side=PICTURE), Threshold(4 - METHODS[method])
    cpu = torch.device("cpu")
    about = {"method": method, "draw": 0, "stages": ("Unet",)}
    scores = evaluate(model, sets, cpu, **about, further=True, watch=watch)
    watch.save(place)
    if method == "cooperative":
        torch.manual_seed(0)
        images, labels = torch.rand(1, 1, 16, 16), torch.randint(2, (1, 16, 16))
        coop = CooperativeModel(FTN(num_classes=2, width=2, depth=2), num_classes=2, example=images)
        Moments(place / "hard_examples", [(images, labels)]).on_start(SimpleNamespace(global_step=0, model=coop))
    (place / "log.csv").write_text("epoch,step,lr,seconds,loss,val_iou\n1,10,0.1,2,3.5,0.1\n")
    iterations = 10 // (1 + METHODS[method])
    took = {"iterations": iterations, "iterations of plain": 10, "cost": 1.0 + METHODS[method], "seconds": 2.5}
    outputs.finish(method, 0, scores, {**took, "notes": []})


def write(folder: Path, *, methods: tuple[str, ...] = ("plain", "cooperative")) -> str:
    outputs = Outputs(folder, CONFIGURATION)
    write_page(outputs, [*outputs.finished(methods)], [])
    return (folder / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = Outputs(tmp_path_factory.mktemp("run"), CONFIGURATION)
    for method in METHODS:
        fill(outputs, method)
    return outputs.folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return write(folder)


def test_the_page_speaks_of_images_and_of_nothing_cardiac(text: str) -> None:
    page = Page(text)
    assert [name for name in page.ids if name in {*SECTIONS, "vendors", "positions"}] == SECTIONS
    assert "Cooperative training on nuclei" in text
    assert "Dice of nuclei: mean over images" in page.texts["result"]
    assert "image by image" in page.texts["differences"]
    assert "inverted/stained" in page.texts["parts"]
    for section in ("result", "summary", "differences", "parts", "cases", "moments"):
        assert not re.search("patient|heart|slice|vendor|ventricle", page.texts[section]), section


def test_the_summary_has_the_figures_of_every_method_and_says_what_they_mean(folder: Path, text: str) -> None:
    shown = Page(text).texts["summary"]
    scores = [score for method in METHODS for score in read_scores(folder / method / "draw-0")]
    head, *lines = summary_grid(scores, {"plain": 1.0, "cooperative": 2.0})
    for line in lines:
        known = dict(zip(head, line, strict=True))
        wanted = ["method", "draws", "cost in plain steps", "fluo256", "shifts"]
        wanted += [f"{what}, {side}" for what in ("failures", "HD95", "ECE", "correlation") for side in wanted[3:5]]
        assert "".join(known[name] for name in wanted) in shown.replace("\n", "")
    assert all(words in shown for words in ("HD95 in pixels", *MEANINGS, *MEANINGS.values()))
    assert "Iterations: plain 10 in place of 10; cooperative 5 in place of 10." in shown


def test_cases_are_two_of_the_worst_and_two_of_the_best_images_of_each_column(text: str) -> None:
    shown = Page(text).texts["cases"]
    captions = {words: shown.count(f"{words}: Dice") for words in ("worst", "best", "only image")}
    assert captions == {"worst": 2 * (2 + 1), "best": 2 * (2 + 1), "only image": 2}
    assert f"image {LONG[:15]}…" in shown
    shapes = {
        tuple(map(int, found)) for found in re.findall(r'<image [^>]*x="0" y="0" width="(\d+)" height="(\d+)"', text)
    }
    assert {(16, 16), (24, 20), (12, 16), (12, PICTURE)} <= shapes


def test_what_a_run_did_not_keep_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    for method in METHODS:
        (tmp_path / "old" / method / "draw-0" / "cases.npz").unlink()
    page = Page(write(tmp_path / "old"))
    assert "for: plain, draw 0; cooperative, draw 0" in page.texts["cases"]
    assert "Not kept" not in page.texts["moments"]


def test_without_calibration_there_is_no_summary_and_without_a_decoder_no_hard_example(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "run")
    place = tmp_path / "run" / "plain" / "draw-0"
    write_scores(place, [score for score in read_scores(place) if score.metric in ("dice", "missed", "hd95")])
    page = Page(write(tmp_path / "run", methods=("plain",)))
    assert "summary" not in page.texts
    assert "#summary" not in page.sources
    assert "No method here learns to decode images" in page.texts["moments"]
