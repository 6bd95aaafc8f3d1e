"""The page of a run, from output folders that are written here without any training."""

import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cardiac.cases import Cases
from cardiac.data import Frame
from cardiac.metrics import Score, evaluate
from cardiac.moments import Moments
from cardiac.outputs import Outputs
from cardiac.page import PAGE, differences, environment, headline, table, write_page
from cardiac.report import tabulate

from latentaug import FTN, CooperativeModel

CONFIGURATION = {"preset": "quick", "iterations": 10, "data": {"ACDC": "phantom"}}
METHODS = {"standard": 0, "cooperative": 2}
SECTIONS = ["result", "curves", "vendors", "positions", "cases", "moments", "settings", "notes"]
NASTY = '<script src="http://example.org">&'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects what the tests ask for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.sources, self.texts = [], [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.sources.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for tag, name in self.open:
            if tag == "section":
                self.texts[name] = self.texts.get(name, "") + data


class Steps(torch.nn.Module):
    """Stands for a trained model: labels brightness, some of it wrongly."""

    def __init__(self, lost):
        super().__init__()
        self.lost = lost

    def forward(self, images):
        labels = (images[:, 0] * 3.99).long()
        labels[:, :, : self.lost] = 0
        return torch.nn.functional.one_hot(labels, 4).movedim(-1, 1).float()

    def refine(self, logits):
        return logits


def frames(seed, *, vendors=(None,), patient="007"):
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


def fill(outputs, method, draw):
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


def write(folder, configuration=CONFIGURATION, notes=("Too short & small.", NASTY)):
    outputs = Outputs(folder, configuration)
    write_page(outputs, [*outputs.finished(METHODS)], notes)
    return (folder / PAGE).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods and two draws."""
    outputs = Outputs(tmp_path_factory.mktemp("run"), CONFIGURATION)
    for method in METHODS:
        for draw in range(2):
            fill(outputs, method, draw)
    return outputs.folder


@pytest.fixture(scope="module")
def text(folder):
    return write(folder)


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_page_is_well_formed_and_needs_nothing_else(text):
    page = Page(text)
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert not {"script", "link", "iframe", "object"} & {*page.tags}
    assert not re.search(r"url\((?!#)|@import|<script", text)
    assert len(page.ids) == len({*page.ids})
    assert {source[1:] for source in page.sources if source.startswith("#")} <= {*page.ids}


def test_every_section_is_there_and_names_what_it_shows(text):
    page = Page(text)
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    for section in ("result", "curves", "vendors", "positions", "cases", "moments", "settings"):
        assert all(method in page.texts[section] for method in METHODS), section
    assert "Not kept" not in text
    assert all(column in page.texts["result"] for column in ("ACDC", "RandBias", "M&Ms", "average"))
    assert all(vendor in page.texts["vendors"] for vendor in ("M&Ms/A", "M&Ms/B"))
    assert all(name in page.texts["curves"] for name in ("loss", "refined iou", "hard image segmentation"))
    assert all(name in page.texts["positions"] for name in ("basal", "middle", "apical", "LV", "M&Ms/A"))
    assert all(name in page.texts["settings"] for name in ("latentaug", "python run.py", "standard, draw 1"))
    assert "Too short & small." in page.texts["notes"]


def test_cases_and_moments_are_pictures_with_captions(text):
    page = Page(text)
    # For either method: of seven frames three worst and three best, of two both, of one frame that one.
    captions = {word: page.texts["cases"].count(f"{word}: Dice") for word in ("worst", "best", "only frame")}
    assert captions == {"worst": 8, "best": 8, "only frame": 2}
    assert "RandBias, patient" in page.texts["cases"]
    assert [page.texts["moments"].count(name) for name in ("(0%)", "(100%)")] == [2, 2]
    assert page.tags.count("img") == 2 * (1 + 2)


def test_what_comes_from_data_is_escaped(text):
    assert NASTY not in text
    assert NASTY in Page(text).texts["cases"]  # the patient
    assert NASTY in Page(text).texts["notes"]


def test_the_page_is_made_from_the_folder_alone_and_always_the_same(copy, text):
    assert write(copy) == text


def test_other_metrics_than_dice_change_nothing(copy, text):
    for file in copy.glob("*/*/scores.csv"):
        with file.open("a") as lines:
            lines.write("standard,0,FTN,ACDC,007,ED,LV,hd95,23.5\n")
    assert write(copy) == text


@pytest.mark.parametrize(
    ("lost", "section"),
    [("slices.csv", "positions"), ("cases.npz", "cases"), ("hard_examples/00000000.npz", "moments")],
)
def test_what_a_training_did_not_keep_is_noted(copy, lost, section):
    (copy / "standard" / "draw-0" / lost).write_bytes(b"not a file of this script")
    left = copy / "cooperative" / "draw-0" / lost.split("/")[0]
    shutil.rmtree(left) if left.is_dir() else left.unlink()
    page = Page(write(copy))
    assert "for: standard, draw 0; cooperative, draw 0" in page.texts[section]
    for other in {"positions", "cases", "moments"} - {section}:
        assert "Not kept" not in page.texts[other]


def test_a_run_without_vendors_says_so(folder, tmp_path):
    outputs = Outputs(tmp_path, CONFIGURATION)
    run = next(iter(Outputs(folder, CONFIGURATION).finished(METHODS)))
    write_page(outputs, [run._replace(scores=[s for s in run.scores if "/" not in s.column])], [])
    page = Page((tmp_path / PAGE).read_text(encoding="utf-8"))
    assert "No test set here names the vendors" in page.texts["vendors"]
    assert "standard, draw 0" in page.texts["cases"]


# The result -----------------------------------------------------------------------------------------------------------


def scores_of(values, stage="FTN"):
    """Scores by (method, draw, column)."""
    return [Score(m, d, stage, column, "007", "ED", "LV", "dice", value) for (m, d, column), value in values.items()]


BOTH = {
    ("standard", 0, "ACDC"): 0.5,
    ("standard", 0, "SCD"): 0.4,
    ("standard", 1, "ACDC"): 0.7,
    ("standard", 1, "SCD"): 0.6,
    ("cooperative", 0, "ACDC"): 0.56,
    ("cooperative", 0, "SCD"): 0.39,
    ("cooperative", 1, "ACDC"): 0.8,
    ("cooperative", 1, "SCD"): 0.602,
}


def test_the_headline_names_the_best_method_and_its_gain():
    said = headline(scores_of(BOTH))
    assert "The best average Dice is 0.588, by cooperative (FTN)" in said
    assert "3.8 ± 1.8 points more than standard" in said  # 2.5 in one draw, 5 in the other
    assert "in 1 of 2 columns, over 2 draws." in said


def test_the_headline_says_so_when_the_standard_is_best_or_alone():
    swapped = {
        ("cooperative" if m == "standard" else "standard", draw, column): v for (m, draw, column), v in BOTH.items()
    }
    assert "by standard (FTN)" in headline(scores_of(swapped))
    assert "more than cooperative" in headline(scores_of(swapped))
    alone = {key: value for key, value in BOTH.items() if key[0] == "cooperative"}
    assert "nothing here to compare it with" in headline(scores_of(alone))
    assert headline([]) == "Nothing is scored yet."


def test_differences_are_taken_within_draws_that_both_have():
    partial = scores_of({key: value for key, value in BOTH.items() if key[:2] != ("cooperative", 1)})
    standard, cooperative = tabulate(partial)
    assert differences(partial, cooperative, standard)["ACDC"] == pytest.approx((0.06, None))


def test_the_table_marks_the_best_of_each_column():
    columns, rows = table(scores_of(BOTH))
    assert columns == ["ACDC", "SCD", "average"]
    (standard, theirs), (cooperative, ours) = rows
    assert (standard.method, cooperative.method) == ("standard", "cooperative")
    assert [entry.best for entry in theirs] == [False, True, False]
    assert [entry.best for entry in ours] == [True, False, True]
    assert [entry.difference for entry in ours] == ["+8.0 ± 2.8", "−0.4 ± 0.8", "+3.8 ± 1.8"]
    assert [entry.difference for entry in theirs] == ["", "", ""]
    assert ours[0].text == "0.680 ± 0.170"
