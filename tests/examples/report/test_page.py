"""The page of a run, from output folders that are written here without any training."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cardiac.data.readers import Frame
from cardiac.report.page import PAGE, write_page
from cardiac.run.cases import Cases
from latentaug import FTN, CooperativeModel
from study.report.comparison import SHIFTED, compare
from study.report.result import gain
from study.run.environment import environment
from study.run.metrics import evaluate
from study.run.moments import Moments
from study.run.outputs import Outputs
from study.run.scores import Score, read_scores, write_scores
from tests.support.page import Page

CONFIGURATION = {"preset": "quick", "iterations": 10, "data": {"ACDC": "phantom"}}
METHODS = {"standard": 0, "cooperative": 2}
SECTIONS = ["result", "differences", "curves", "vendors", "positions", "cases", "moments", "settings", "notes"]
NASTY = '<script src="http://example.org">&'


class Steps(torch.nn.Module):
    """Stands for a trained model: labels brightness, some of it wrongly."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.lost = lost

    def forward(self, images: Tensor) -> Tensor:
        labels = (images[:, 0] * 3.99).long()
        labels[:, :, : self.lost] = 0
        return torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()

    def refine(self, logits: Tensor) -> Tensor:
        return logits


def frames(seed: int, *, vendors: Sequence[str | None] = (None,), patient: str = "007") -> list[Frame]:
    """One frame for each vendor: three slices with all labels, one without."""
    found = []
    for number, vendor in enumerate(vendors):
        labels = np.random.default_rng(seed + number).integers(0, 4, (4, 16, 16)).astype(np.uint8)
        labels[:, 0] = 3
        image = (labels / 3).astype(np.float32)
        labels[3] = 0
        group = {} if vendor is None else {"vendor": vendor}
        found.append(Frame(f"{patient}{number}", "ED", image, labels, (10.0, 1.4, 1.4), group=group))
    return found


def fill(outputs: Outputs, method: str, draw: int) -> None:
    """Write what a training leaves in its folder."""
    place = outputs.place(method, draw)
    place.mkdir(parents=True)
    sets = {
        "ACDC": frames(draw, vendors=(None,) * 7),
        "RandBias": frames(draw, patient=NASTY),
        "M&Ms": frames(9, vendors=("A", "B")),
    }
    cases = Cases()
    model, device = Steps(7 - 2 * METHODS[method]), torch.device("cpu")
    scores = evaluate(model, sets, device, method=method, draw=draw, watch=cases)
    cases.save(place)
    torch.manual_seed(0)
    images, labels = torch.rand(2, 1, 16, 16), torch.randint(4, (2, 16, 16))
    coop = CooperativeModel(FTN(num_classes=4, width=2, depth=2), num_classes=4, example=images)
    moments = Moments(place / "hard_examples", [(images, labels), (images, labels)])
    moments.on_start(SimpleNamespace(global_step=0, model=coop))
    moments.on_step(SimpleNamespace(global_step=10, planned_steps=10, model=coop), {})
    extra = ",hard_image_segmentation" if method == "cooperative" else ""
    head, lines = f"epoch,step,lr,seconds,loss,val_refined_iou{extra}", ["1,5,0.1,2,3.5,0.1", "2,10,0.1,4,2.5,0.2"]
    (place / "log.csv").write_text("\n".join([head, *(line + (",1" if extra else "") for line in lines)]) + "\n")
    about = {"iterations": 10, "seconds": 2.5, "notes": [], "torch": "2", **environment("python run.py")}
    outputs.finish(method, draw, scores, about)


def write(
    folder: Path, configuration: Mapping[str, Any] = CONFIGURATION, notes: Sequence[str] = ("Too short & small.", NASTY)
) -> str:
    outputs = Outputs(folder, configuration)
    write_page(outputs, [*outputs.finished(METHODS)], notes)
    return (folder / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods and two draws."""
    outputs = Outputs(tmp_path_factory.mktemp("run"), CONFIGURATION)
    for method in METHODS:
        for draw in range(2):
            fill(outputs, method, draw)
    return outputs.folder


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return write(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_page_is_well_formed_and_needs_nothing_else(text: str) -> None:
    page = Page(text)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert len(page.ids) == len({*page.ids})
    assert {source[1:] for source in page.sources if source.startswith("#")} <= {*page.ids}


def test_every_section_is_there_and_names_what_it_shows(text: str) -> None:
    page = Page(text)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    for section in ("result", "differences", "curves", "vendors", "positions", "cases", "moments", "settings"):
        assert all(method in page.texts[section] for method in METHODS), section
    assert "Not kept" not in text
    assert all(column in page.texts["result"] for column in ("ACDC", "RandBias", "M&Ms", "average"))
    assert all(vendor in page.texts["vendors"] for vendor in ("M&Ms/A", "M&Ms/B"))
    assert all(name in page.texts["curves"] for name in ("loss", "refined iou", "hard image segmentation"))
    assert all(name in page.texts["positions"] for name in ("basal", "middle", "apical", "LV", "M&Ms/A"))
    assert all(name in page.texts["settings"] for name in ("latentaug", "python run.py", "standard, draw 1"))
    assert "Too short & small." in page.texts["notes"]


def test_cases_and_moments_are_pictures_with_captions(text: str) -> None:
    page = Page(text)
    # For either method and draw: of seven frames three worst and three best, of two both, of one frame that one.
    captions = {word: page.texts["cases"].count(f"{word}: Dice") for word in ("worst", "best", "only frame")}
    assert captions == {"worst": 16, "best": 16, "only frame": 4}
    assert "RandBias, patient" in page.texts["cases"]
    assert [page.texts["moments"].count(name) for name in ("(0%)", "(100%)")] == [4, 4]
    assert page.tags.count("img") == 4 * (1 + 2)


def test_cases_and_moments_of_all_draws_are_there_and_the_first_ones_open(text: str) -> None:
    page = Page(text)
    assert page.details == [True, False] * 2
    for section in ("cases", "moments"):
        assert re.findall(r"Draw \d", page.texts[section]) == ["Draw 0", "Draw 1"]


def test_the_page_shows_the_differences_of_the_comparison_and_no_others(folder: Path, text: str) -> None:
    scores = [score for run in Outputs(folder, CONFIGURATION).finished(METHODS) for score in run.scores]
    page, found = Page(text), [row for row in compare(scores) if row.metric == "dice"]
    assert {row.column for row in found} > {"ACDC", SHIFTED, "average", "M&Ms/A"}
    for row in found:
        section = page.texts["vendors" if "/" in row.column else "differences"]
        assert all(words in section for words in gain(row)[:4])
    points = [gain(row).points for row in found if row.column != SHIFTED]
    shown = [n for name in ("result", "vendors") for n in re.findall(r"(?<=\d)[+−]\d+\.\d", page.texts[name])]
    assert all(points.count(one) <= shown.count(one) for one in points)
    assert page.texts["differences"].count("points ahead of standard") == 1


def test_what_comes_from_data_is_escaped(text: str) -> None:
    assert NASTY not in text
    assert NASTY in Page(text).texts["cases"]  # the patient
    assert NASTY in Page(text).texts["notes"]


def test_the_page_is_made_from_the_folder_alone_and_always_the_same(copy: Path, text: str) -> None:
    assert write(copy) == text


def test_other_metrics_than_dice_change_nothing(copy: Path, text: str) -> None:
    for file in copy.glob("*/*/scores.csv.xz"):
        distance = Score("standard", 0, "FTN", "ACDC", "007", "ED", "LV", "hd95", 23.5)
        write_scores(file.parent, [*read_scores(file.parent), distance])
    assert write(copy) == text


@pytest.mark.parametrize(
    ("lost", "section"),
    [("slices.csv", "positions"), ("cases.npz", "cases"), ("hard_examples/00000000.npz", "moments")],
)
def test_what_a_training_did_not_keep_is_noted(copy: Path, lost: str, section: str) -> None:
    (copy / "standard" / "draw-0" / lost).write_bytes(b"not a file of this script")
    left = copy / "cooperative" / "draw-0" / lost.split("/")[0]
    shutil.rmtree(left) if left.is_dir() else left.unlink()
    page = Page(write(copy))
    assert "for: standard, draw 0; cooperative, draw 0" in page.texts[section]
    for other in {"positions", "cases", "moments"} - {section}:
        assert "Not kept" not in page.texts[other]


def test_a_run_without_vendors_says_so(folder: Path, tmp_path: Path) -> None:
    outputs = Outputs(tmp_path, CONFIGURATION)
    run = next(iter(Outputs(folder, CONFIGURATION).finished(METHODS)))
    write_page(outputs, [run._replace(scores=[s for s in run.scores if "/" not in s.column])], [])
    page = Page((tmp_path / PAGE).read_text(encoding="utf-8"))
    assert "No test set here names the vendors" in page.texts["vendors"]
    assert "standard" in page.texts["cases"]
    assert "No other method was tested" in page.texts["differences"]
