"""The results in the repository: small enough to read, and what the docs quote of them is in them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Container, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import fmean

import pytest

from study.data.plain_files import read_compressed
from study.report.compare_runs import costs_of_all, main, together
from study.report.comparison import SHIFTED, Difference, compare
from study.report.summary import summary_grid
from study.report.tables import columns_of, tabulate
from study.run.scores import AVERAGE, FILE, VALIDATION
from tests.examples.test_architecture import EXAMPLES

RESULTS = EXAMPLES.parent / "benchmarks" / "results"
CARDIAC = RESULTS / "cardiac_cpu"
MEGABYTE = 1_000_000


def test_results_are_small() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5 * MEGABYTE
    assert [path for path in files if path.suffix != ".png" and path.stat().st_size > MEGABYTE] == []


def test_what_can_be_drawn_again_is_not_kept() -> None:
    derived = {path.parent for path in chain(CARDIAC.rglob("table.json"), CARDIAC.rglob("comparison.csv"))}
    assert not derived & {path.parent for path in CARDIAC.rglob("scores.csv*")}


def test_commands_name_no_folder_of_the_machine_that_ran_them() -> None:
    kept = [path.read_text() for name in ("done.json", "configuration.json") for path in RESULTS.rglob(name)]
    assert kept
    assert not [text for text in kept if '"/' in text or " /" in text or "=/" in text]


@pytest.mark.parametrize("folder", sorted(path.parent for path in CARDIAC.rglob(FILE)), ids=lambda path: path.name)
def test_scores_can_be_read(folder: Path) -> None:
    trained = {(path.parent.parent.name, path.parent.name) for path in folder.glob("*/draw-*/done.json")}
    assert {(score.method, f"draw-{score.draw}") for score in together([folder])} == trained


@pytest.mark.parametrize("folder", [CARDIAC / "unet_plain", CARDIAC / "wrapped" / "gin"], ids=lambda path: path.name)
def test_what_a_run_makes_of_its_scores_can_be_made_of_those_that_are_kept(folder: Path, tmp_path: Path) -> None:
    assert main([str(folder), "--output", str(tmp_path / "again")]) == 0
    assert {"table.md", "table.json"} <= {path.name for path in (tmp_path / "again").iterdir()}


def test_logs_go_on_to_the_end_of_each_training() -> None:
    logs = [*RESULTS.rglob("log.csv.xz")]
    assert logs
    for log in logs:
        *_, last = csv.DictReader(read_compressed(log).splitlines())
        assert int(last["step"]) == json.loads((log.parent / "done.json").read_text())["iterations"], log


@cache
def differences(reference: str) -> list[Difference]:
    """Compare the U-Nets alone that were trained on three draws."""
    scores = together([CARDIAC / name for name in ("unet_plain", "unet_last", "unet_details_last")])
    return compare([score for score in scores if score.metric == "dice" and score.stage == "Unet"], reference)


@pytest.mark.parametrize(
    ("method", "reference", "column", "patients", "quoted"),
    [
        ("cooperative-details", "standard", SHIFTED, 24, "**+3.5** | +2.7 to +4.5"),
        ("standard", "plain", "ACDC", 20, "| standard | -2.6 (-3.0 to -2.3) |"),
        ("standard", "plain", SHIFTED, 24, "| -3.7 (-4.3 to -3.1) | -5.1, -3.0, -3.2 |"),
        ("cooperative-details", "plain", "ACDC", 20, "| cooperative | -1.9 (-2.6 to -1.1) |"),
        ("cooperative-details", "plain", SHIFTED, 24, "| -0.2 (-0.8 to +0.4) | +1.2, +0.4, -2.1 |"),
    ],
)
def test_differences_that_the_docs_quote_are_those_of_the_scores(
    method: str, reference: str, column: str, patients: int, quoted: str
) -> None:
    (found,) = (one for one in differences(reference) if (one.method, one.column) == (method, column))
    assert found.patients == patients
    assert quoted in (EXAMPLES.parent / "docs" / "explanation" / "cardiac-example.md").read_text()
    points = [f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high, *found.draws.values()) if value]
    assert set(re.findall(r"[+-]\d\.\d", quoted)) <= {*points}


@pytest.mark.parametrize(
    ("method", "stage", "name"),
    [
        ("standard", "FTN", "standard, the network alone"),
        ("standard", "FTN+STN", "standard, with the shape prior"),
        ("cooperative", "FTN", "cooperative, the network alone"),
        ("cooperative", "FTN+STN", "cooperative, with the shape prior"),
    ],
)
def test_what_the_papers_network_gains_over_itself_alone_is_quoted_right(method: str, stage: str, name: str) -> None:
    scores = [score for score in together([CARDIAC, CARDIAC / "ftn_plain"]) if score.metric == "dice"]
    found = {one.column: one for one in compare(scores, "plain") if (one.method, one.stage) == (method, stage)}
    cells = []
    for column in ("ACDC", SHIFTED):
        one = found[column]
        assert one.low is not None
        assert one.high is not None
        cells.append("{} ({} to {})".format(*in_points(one.mean, one.low, one.high)))
    cells.append(", ".join(in_points(*found[SHIFTED].draws.values())))
    page = (EXAMPLES.parent / "docs" / "explanation" / "cardiac-example.md").read_text().replace("**", "")
    assert f"| {name} | {' | '.join(cells)} |" in page
    if name == "cooperative, with the shape prior":
        readme = (EXAMPLES.parent / "README.md").read_text()
        assert "3.1 points ahead of that network alone (95 % interval +2.4 to\n+3.8; +3.2, +4.5 and +1.5" in readme
        assert f"under spikes ({in_points(found['RandSpike'].mean)[0]})" in readme


RECIPE = re.compile(r"^\| `([a-z-]+)` \| `([a-z-]+)` \| [\d.]+ \| (.+) \|$", re.MULTILINE)


def recipes_page() -> str:
    return (EXAMPLES.parent / "docs" / "explanation" / "recipes.md").read_text()


@cache
def recipes() -> dict[str, list[str]]:
    """Return the cells of each line of the table of recipes, by what `compare_runs` calls its method."""
    text = recipes_page().partition("\n## ")[0]
    lines = {}
    for method, augment, cells in RECIPE.findall(text):
        name = "cooperative-details" if method == "cooperative" else method
        lines[name if augment == "none" else f"{name} + {augment}"] = cells.split(" | ")
    return lines


def test_recipes_are_those_whose_scores_are_kept_and_quoted_right() -> None:
    folders = [CARDIAC / "unet_plain", *sorted((CARDIAC / "recipes").iterdir())]
    folders += [CARDIAC / "unet_last", CARDIAC / "unet_details_last"]
    of_all = together(folders)
    scores = [score for score in of_all if (score.draw, score.stage, score.metric) == (0, "Unet", "dice")]
    over = {one.method: one for one in compare(scores, "plain") if one.column == SHIFTED}
    rows = tabulate(scores)
    assert {row.method for row in rows} == {*recipes()}
    for row in rows:
        columns = [row.cells[name].mean for name in columns_of(rows) if name != AVERAGE]
        expected = [f"{value:.3f}" for value in (*columns, fmean(columns[1:]))]
        if (found := over.get(row.method)) is not None:
            points = [f"{100 * value:+.1f}" for value in (found.mean, found.low, found.high) if value is not None]
            expected.append("{} ({} to {})".format(*points))
        assert [cell for cell in recipes()[row.method] if cell.strip()] == expected, row.method


CHOSEN = re.compile(r"^\| `([a-z-]+)` \| `([a-z-]+)` \| (\d) \| [\d.]+ \| (.+) \|$", re.MULTILINE)
TESTED_ON = ["ACDC", "RandBias", "RandSpike", "RandGhosting", "RandMotion", "SCD"]


def test_what_the_default_was_chosen_by_is_quoted_right() -> None:
    found = {
        (method, augment, draw): cells.split(" | ") for method, augment, draw, cells in CHOSEN.findall(recipes_page())
    }
    columns = ("validation", "shifted validation", *TESTED_ON, "shifts")
    with (CARDIAC / "wrapped" / "validated.csv").open() as file:
        kept = {
            (row["method"], row["augment"], row["draw"]): [
                f"{float(row[name]):.3f}" if row[name] else "" for name in columns
            ]
            for row in csv.DictReader(file)
        }
    assert found == kept


def test_how_validation_ranks_is_quoted_right() -> None:
    stats = pytest.importorskip("scipy.stats")
    with (CARDIAC / "wrapped" / "validated.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["draw"] == "0" and row["shifts"]]
    found = stats.spearmanr(*([float(row[name]) for row in rows] for name in ("shifted validation", "shifts")))
    assert len(rows) == 26
    assert "as far as 26 recipes" in recipes_page()
    assert f"shifts is {found.statistic:.2f} (p = {found.pvalue:.0e})." in recipes_page()


NUCLEI = RESULTS / "nuclei_cpu"


def nuclei_page() -> str:
    return (EXAMPLES.parent / "docs" / "explanation" / "nuclei-example.md").read_text()


def difference(
    folders: Sequence[Path],
    method: str,
    reference: str = "plain",
    *,
    column: str = SHIFTED,
    file: str = FILE,
    draws: Container[int] = range(3),
) -> Difference:
    """Return by how much the Dice of a method is above that of another in a column."""
    scores = [score for score in together(folders, file) if score.metric == "dice" and score.draw in draws]
    pair = [score for score in scores if score.method in (method, reference)]
    (found,) = (one for one in compare(pair, reference) if one.column == column)
    return found


def validated(folder: Path, method: str, draw: int = 0) -> dict[str, float]:
    """Return the means over validation cases that a training was chosen by."""
    found: dict[str, float] = json.loads((folder / method / f"draw-{draw}" / "done.json").read_text())["validated"]
    return found


def in_points(*values: float) -> list[str]:
    """Return hundredths of Dice as the docs write them."""
    return [f"{100 * value:+.1f}" for value in values]


NUCLEI_RESULTS, DEFAULT = ("nuclei-example", "Results"), ("recipes", "What a network is wrapped with by default")
HALVES = ("none", "gin", "time/none", "time/gin")


@pytest.mark.parametrize(
    ("where", "number", "root", "names", "draws"),
    [
        (NUCLEI_RESULTS, 0, NUCLEI, HALVES, {0, 1, 2}),
        (NUCLEI_RESULTS, 1, NUCLEI, HALVES, {0, 1, 2}),
        (
            NUCLEI_RESULTS,
            2,
            NUCLEI,
            ("none", "gin", "recipes/nnunet", "recipes/randconv", "recipes/gin", "time/gin", "time/recipes"),
            {0},
        ),
        (NUCLEI_RESULTS, 3, NUCLEI, ("none", "finetuned/none", "finetuned/gin"), {0, 1, 2}),
        (DEFAULT, 1, CARDIAC / "wrapped", HALVES, {0, 1, 2}),
        (DEFAULT, 2, CARDIAC / "wrapped", HALVES, {0, 1, 2}),
    ],
)
def test_summaries_are_quoted_right(
    where: tuple[str, str], number: int, root: Path, names: tuple[str, ...], draws: set[int]
) -> None:
    kept = summary_lines([root / name for name in names], draws)
    columns, rows = table(*where, number)
    assert {row[0] for row in rows} == {*kept}
    for row in rows:
        assert row == [kept[row[0]][name] for name in columns]


def summary_lines(folders: Sequence[Path], draws: Container[int] = range(3)) -> dict[str, dict[str, str]]:
    """Return the cells of a summary by method and column."""
    head, *lines = summary_grid([one for one in together(folders) if one.draw in draws], costs_of_all(folders))
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def test_what_renewed_statistics_change_is_quoted_right() -> None:
    left, renewed = (
        {
            (method, draw): json.loads((folder / method / f"draw-{draw}" / "done.json").read_text())["validation dice"]
            for method in ("plain", "default")
            for draw in (1, 2)
        }
        for folder in (NUCLEI / "sizes" / "30" / name for name in ("kept", "none"))
    )
    page = " ".join(nuclei_page().split())
    hit = "default", 1
    assert f"`default`, draw 1, had a Dice of {left[hit]:.3f} on its validation images, and {renewed[hit]:.3f}" in page
    low, *_, high = sorted(renewed[key] - left[key] for key in left if key != hit)
    assert "The other three changed by {} to {} points.".format(*in_points(low, high)) in page
    shifts = difference([NUCLEI / "sizes" / "30" / "kept"], "default").draws.values()
    words = "`default` with thirty images was {} and {} on the shifts in draws 1 and 2."
    assert words.format(*in_points(*shifts)) in page


def test_what_a_shorter_training_has_is_quoted_right() -> None:
    shorter, usual = (
        [summary_lines([NUCLEI / name], {draw})["plain"]["shifts"] for draw in (0, 1)]
        for name in ("shorter/gin", "gin")
    )
    page = nuclei_page()
    assert f"{' and '.join(shorter)} in draws 0 and 1 for 345 iterations, {' and '.join(usual)} for 400" in page


def table(page: str, section: str, number: int) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the lines of a table in a section of a page."""
    text = (EXAMPLES.parent / "docs" / "explanation" / f"{page}.md").read_text().partition(f"## {section}\n")[2]
    lines = re.findall(r"(?:^\|.*\|$\n)+", text, re.MULTILINE)[number].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return columns, rows


@pytest.mark.parametrize(
    ("method", "over", "quoted"),
    [
        (("cooperative", "nnunet"), ("plain", "nnunet"), "2.1 ahead on shifted validation, and 0.3 on the tests"),
        (("plain", "nnunet"), ("plain", "none"), "are +0.8 over none, and +1.3 on the tests"),
        (("plain", "randconv"), ("plain", "none"), "random convolutions +2.7 and +2.7"),
        (("dsu", "gin"), ("plain", "gin"), "`DSU` +0.4, and +0.8 on the tests"),
        (("latent-masks", "gin"), ("plain", "gin"), "(`latent-masks`) +0.1, and\n  +0.2;"),
        (("dropblock", "gin"), ("plain", "gin"), "`DropBlock` -0.2, and +0.7;"),
        (("mixstyle", "gin"), ("plain", "gin"), "`MixStyle` -0.9, and -1.3."),
        (("maxstyle", "gin"), ("plain", "gin"), "`MaxStyle` -1.0, and -0.7,"),
        (("cooperative", "gin"), ("plain", "gin"), "`cooperative`, -0.3, and -1.1,"),
        (("rsc", "gin"), ("plain", "gin"), "`RSC` -0.9, and -2.5,"),
    ],
)
def test_single_recipes_are_quoted_right(method: tuple[str, str], over: tuple[str, str], quoted: str) -> None:
    with (CARDIAC / "wrapped" / "validated.csv").open() as file:
        kept = {(row["method"], row["augment"]): row for row in csv.DictReader(file) if row["draw"] == "0"}
    found = [float(kept[method][name]) - float(kept[over][name]) for name in ("shifted validation", "shifts")]
    assert quoted in recipes_page()
    assert re.findall(r"\d\.\d", quoted) == [f"{100 * abs(value):.1f}" for value in found]


@pytest.mark.parametrize("images", ["30", "100"])
def test_what_more_images_change_is_quoted_right(images: str) -> None:
    kept = summary_lines([NUCLEI / "sizes" / images / augment for augment in ("none", "gin")])
    columns, rows = table(*NUCLEI_RESULTS, 4)
    rows = [row[1:] for row in rows if row[0] == images]
    assert {row[0] for row in rows} == {*kept}
    for row in rows:
        assert row == [kept[row[0]][name] for name in columns[1:]]


@pytest.mark.parametrize(
    ("method", "reference", "column", "quoted"),
    [
        ("mixstyle + gin", "plain + gin", "shifts", "in one pass is 1.4 to"),
        ("dsu + gin", "plain + gin", "shifts", "to 4.3 points ahead"),
        ("manifold-mixup + gin", "plain + gin", "shifts", "`ManifoldMixup` is 9.4 behind"),
        ("hard-codes + gin", "plain + gin", "shifts", "(`hard-codes`) are 3.5 ahead"),
        ("hard-codes + gin, equal time", "plain + gin", "shifts", "and 0.3 at equal time"),
        ("rsc + gin", "plain + gin", "shifts", "`RSC` 1.9,"),
        ("rsc + gin, equal time", "plain + gin", "shifts", "and -2.0;"),
        ("maxstyle + gin", "plain + gin", "shifts", "MaxStyle -1.5,"),
        ("maxstyle + gin, equal time", "plain + gin", "shifts", "and -1.6."),
        ("cooperative + gin", "plain + gin", "shifts", "lose 5.5 points on the shifts"),
        ("cooperative + gin, equal time", "plain + gin", "shifts", "and 1.3 at equal time"),
        ("plain + nnunet", "plain", "shifts", "are 3.3 points ahead of none"),
        ("plain + randconv", "plain", "shifts", "random convolutions 1.6,"),
        ("plain + randconv", "plain", "fluo256", "for 1.3 in-domain"),
        ("plain + gin", "plain", "shifts", "2.0 points below no augmentation"),
    ],
)
def test_differences_of_single_trainings_on_nuclei_are_quoted_right(
    method: str, reference: str, column: str, quoted: str
) -> None:
    names = ("none", "gin", "recipes/nnunet", "recipes/randconv", "recipes/gin", "time/recipes")
    kept = summary_lines([NUCLEI / name for name in names], {0})
    page = " ".join(nuclei_page().split())
    assert quoted in page
    number = re.findall(r"\d+\.\d", quoted)[0]
    # of figures that are rounded to a tenth of a point
    assert float(number) == pytest.approx(
        100 * abs(float(kept[method][column]) - float(kept[reference][column])), abs=0.11
    )


def test_what_dsu_gains_on_hearts_is_quoted_right() -> None:
    with (CARDIAC / "wrapped" / "validated.csv").open() as file:
        kept = {(row["method"], row["draw"]): row for row in csv.DictReader(file) if row["augment"] == "gin"}
    page = " ".join(recipes_page().split())
    quoted = {
        "shifted validation": "hearts {}, {} and {} in three draws",
        "shifts": "their tests {}, {} and {} (",
        "ACDC": "(ACDC {}, {} and {})",
    }
    for name, words in quoted.items():
        pairs = [(kept["dsu", draw][name], kept["plain", draw][name]) for draw in "012"]
        assert words.format(*in_points(*(float(one) - float(other) for one, other in pairs))) in page


def test_what_the_readme_says_of_dsu_is_that_of_the_scores() -> None:
    with (CARDIAC / "wrapped" / "validated.csv").open() as file:
        kept = {(row["method"], row["draw"]): row for row in csv.DictReader(file) if row["augment"] == "gin"}
    hearts = in_points(*(float(kept["dsu", draw]["shifts"]) - float(kept["plain", draw]["shifts"]) for draw in "012"))
    nuclei = in_points(*difference([NUCLEI / "gin", NUCLEI / "recipes" / "gin"], "dsu").draws.values())
    page = " ".join((EXAMPLES.parent / "README.md").read_text().split())
    assert (
        "{}, {} and {} points on the shifts of cardiac MR, and {}, {} and {} on nuclei.".format(*hearts, *nuclei)
        in page
    )


def test_what_statistics_without_gin_gain_on_hearts_is_quoted_right() -> None:
    gains = {}
    for method in ("dsu", "dropblock"):
        left, renewed = (validated(CARDIAC / "wrapped" / folder, method) for folder in ("recipes/gin", "renewed/gin"))
        gains[method] = in_points(*(renewed[name] - left[name] for name in ("dice", "shifted dice")))
    assert [*gains.values()] == [["+0.4", "+0.5"], ["+0.5", "+0.4"]]
    assert "they gain 0.4 and 0.5 points on validation, and 0.5 and 0.4 on shifted validation" in recipes_page()


def test_how_validation_ranks_nuclei_is_quoted_right() -> None:
    stats = pytest.importorskip("scipy.stats")
    found = []
    for folder in ("none", "gin", "recipes/nnunet", "recipes/randconv", "recipes/gin"):
        kept = summary_lines([NUCLEI / folder], {0})
        for name, line in kept.items():
            chosen_by = validated(NUCLEI / folder, name.partition(" ")[0])
            found.append((chosen_by["dice"], chosen_by["shifted dice"], float(line["shifts"])))
    as_they_are, under_shifts, tested = zip(*found, strict=True)
    ranks = [stats.spearmanr(one, tested).statistic for one in (under_shifts, as_they_are)]
    page = " ".join(nuclei_page().split())
    assert len(found) == 15
    assert f"the tests' shifts is {ranks[0]:.2f} over the fifteen rows" in page
    assert f"Validation images as they are rank better: {ranks[1]:+.2f}." in page


@pytest.mark.parametrize(
    ("folders", "method", "reference", "quoted"),
    [
        (("none",), "default", "plain", "+1.0 (+2.1, +1.4, -0.5) at equal iterations"),
        (("none", "time/none"), "default, equal time", "plain", "+0.9 (+2.4, +1.2, -1.0) at equal time"),
        (("gin",), "default", "plain", "On `GIN`: -0.8 (+2.0, -2.1, -2.4)"),
        (("gin", "time/gin"), "default, equal time", "plain", "+2.5 (+1.9, +3.5, +2.2)."),
        (("sizes/30/none",), "default", "plain", "0.8 ahead of the\nnetwork alone with thirty (+3.3, -1.9, +0.9)"),
        (("sizes/30/gin",), "default", "plain", "1.9 behind on `GIN` (-0.3, -6.2, +0.8)"),
        (
            ("sizes/30/none", "sizes/30/gin"),
            "plain + gin",
            "plain",
            "`GIN` loses 0.6 points on the shifts (+3.9, -1.7, -4.0)",
        ),
        (("gin", "recipes/gin"), "dsu", "plain", "1.0 in three draws (+4.3, +1.7, -2.9)"),
        (("none", "augmented/gin"), "plain + gin", "plain", "-8.2 points on the shifts\n  (-5.4, -9.1, -10.1)"),
        (
            ("none", "finetuned/none"),
            "plain, fine-tuned",
            "plain",
            "-0.5 points for the network alone (+0.5, -1.4, -0.6)",
        ),
        (("none", "finetuned/none"), "default, fine-tuned", "plain", "-0.1 for `default` (+0.8,\n-1.6, +0.4)"),
        (("none", "finetuned/gin"), "plain + gin, fine-tuned", "plain", "to lose 8.9 (+0.0, -22.7, -4.1)"),
        (
            ("none", "finetuned/gin"),
            "default + gin, fine-tuned",
            "plain",
            "10.0 with `default` on top (-0.8, -25.3, -4.0)",
        ),
        (("none", "gin"), "plain + gin", "plain", "-3.2 on the shifts\n  (-2.0, -5.4, -2.3)"),
    ],
)
def test_differences_on_nuclei_are_those_of_the_scores(
    folders: tuple[str, ...], method: str, reference: str, quoted: str
) -> None:
    found = difference([NUCLEI / name for name in folders], method, reference)
    assert quoted in nuclei_page()
    assert re.findall(r"\d+\.\d", quoted) == [
        f"{100 * abs(value):.1f}" for value in (found.mean, *found.draws.values())
    ]


def test_what_two_further_draws_say_of_nuclei_is_quoted_right() -> None:
    folders = [NUCLEI / name for name in ("gin", "time/gin", "more/gin", "more/time")]
    time, iterations = (difference(folders, name, draws=range(5)) for name in ("default, equal time", "default"))
    pages = nuclei_page(), (EXAMPLES.parent / "README.md").read_text()
    page, readme = (" ".join(text.split()) for text in pages)
    own = [in_points(one.mean, *one.draws.values()) for one in (time, iterations)]
    further = f"{own[0][-2]} and {own[0][-1]} at equal time, {own[1][-2]} and {own[1][-1]} at equal iterations"
    assert further in page
    assert f"all five it is {own[0][0]} at equal time, and {own[1][0]}." in page
    first = difference(folders[:2], "default, equal time").mean
    ahead, before, *behind = (value.strip("+-") for value in (own[0][0], *in_points(first), own[0][-2], own[0][-1]))
    words = (
        f"and {ahead} ahead on `GIN`: {before} in three draws that agreed, and then {behind[0]} and {behind[1]} behind"
    )
    assert words in readme


def test_what_hard_images_in_the_pass_gain_is_quoted_right() -> None:
    quoted = {
        VALIDATION: "(95 % interval +1.6 to +2.5; +2.4, +1.5 and +2.0 in three draws)",
        FILE: "(-2.1 to -0.1; -0.1, -2.7 and -0.4)",
    }
    folders = [CARDIAC / "wrapped" / name for name in ("none", "time/recipes/none")]
    for file, words in quoted.items():
        found = difference(folders, "mixed, equal time", file=file)
        assert found.low is not None
        assert found.high is not None
        assert words in recipes_page()
        assert re.findall(r"[+-]\d\.\d", words) == in_points(found.low, found.high, *found.draws.values())


@pytest.mark.parametrize(
    ("line", "augment", "method"),
    [
        ("the network alone", "none", "plain, fine-tuned"),
        ("the network alone, on `GIN`", "gin", "plain + gin, fine-tuned"),
        ("wrapped, on `GIN`", "gin", "default + gin, fine-tuned"),
    ],
)
def test_gains_of_fine_tuning_are_those_of_the_scores(line: str, augment: str, method: str) -> None:
    points = []
    for folder, start, domain in ((CARDIAC / "wrapped", "calibrated/none", "ACDC"), (NUCLEI, "none", "fluo256")):
        folders = [folder / start, folder / "finetuned" / augment]
        both = (difference(folders, method, column=column) for column in (domain, SHIFTED))
        points += in_points(*(found.mean for found in both))
    page = (EXAMPLES.parent / "docs" / "how-to" / "make-a-trained-network-robust.md").read_text()
    assert f"| {line} | {' | '.join(points)} |" in page.replace("**", "")


@pytest.mark.parametrize(
    ("augment", "method", "quoted"),
    [
        ("gin", "plain + gin, fine-tuned", "+2.6, +2.8 and +1.2, and"),
        ("gin", "default + gin, fine-tuned", "and +2.3, +2.9 and +1.6 ("),
        ("none", "plain, fine-tuned", "and +0.5, -0.8 and -0.1 on the tests"),
    ],
)
def test_what_fine_tuning_gains_on_hearts_is_quoted_right(augment: str, method: str, quoted: str) -> None:
    start, tuned = CARDIAC / "wrapped" / "calibrated" / "none", CARDIAC / "wrapped" / "finetuned" / augment
    assert quoted in recipes_page()
    assert re.findall(r"[+-]\d\.\d", quoted) == in_points(*difference([start, tuned], method).draws.values())
    name = method.partition(" ")[0].strip(",")
    on_validation = [
        validated(tuned, name, draw)["shifted dice"] - validated(start, "plain", draw)["shifted dice"]
        for draw in range(3)
    ]
    one, other, last = in_points(*on_validation)
    assert f"{one}, {other} and {last}" in " ".join(recipes_page().split())


EQUAL_TIME = {
    "hard-codes": "`hard-codes` -1.4, and -1.2 on the tests",
    "rsc": "`RSC` -1.9, and -3.9;",
    "maxstyle": "`MaxStyle` -2.0, and -5.8;",
    "cooperative": "`cooperative` -9.7, and -14.5.",
}


@pytest.mark.parametrize("method", EQUAL_TIME)
def test_what_is_dear_is_quoted_right_at_equal_time(method: str) -> None:
    folder, kept = CARDIAC / "wrapped" / "time" / "recipes" / "gin", EQUAL_TIME[method]
    done = json.loads((folder / method / "draw-0" / "done.json").read_text())
    lines = summary_lines([CARDIAC / "wrapped" / "gin", folder], {0})
    tested = [float(lines[name]["shifts"]) for name in (f"{method}, equal time", "plain")]
    page = " ".join(recipes_page().split())
    assert kept in page
    chosen_by, shifted = (float(number) for number in re.findall(r"-\d+\.\d", kept))
    plain = validated(CARDIAC / "wrapped" / "gin", "plain")["shifted dice"]
    assert in_points(validated(folder, method)["shifted dice"] - plain) == [f"{chosen_by:+.1f}"]
    assert shifted == pytest.approx(100 * (tested[0] - tested[1]), abs=0.11)  # of figures that are rounded
    assert "1001, 975, 674 and 506 iterations in place of 1500" in page
    assert str(done["iterations"]) in page


def test_how_well_networks_know_hearts_is_quoted_right() -> None:
    kept = summary_lines([CARDIAC / "wrapped" / "calibrated" / name for name in ("none", "time")])
    plain, default = kept["plain"], kept["default, equal time"]
    page = " ".join(recipes_page().split())
    for words in (
        f"of plain training is {plain['ECE, ACDC']} on ACDC and {plain['ECE, shifts']} on the shifts",
        f"that of `default` {default['ECE, ACDC']} and {default['ECE, shifts']};",
        f"correlate by {plain['correlation, ACDC']} and {plain['correlation, shifts']}, and by "
        f"{default['correlation, ACDC']} and {default['correlation, shifts']}.",
        f"Total failures are {plain['failures, shifts']} of the shifted cases, and {default['failures, shifts']}.",
    ):
        assert words in page
    found = difference([CARDIAC / "wrapped" / "calibrated" / name for name in ("none", "time")], "default, equal time")
    one, other, last = (value.strip("-") for value in in_points(*found.draws.values()))
    assert f"`default` is {one}, {other} and {last} behind on the shifts" in page


@pytest.mark.parametrize(
    ("images", "folder", "augment"),
    [
        ("cardiac MR", CARDIAC / "wrapped", "none"),
        ("cardiac MR, on `GIN`", CARDIAC / "wrapped", "gin"),
        ("nuclei", NUCLEI, "none"),
        ("nuclei, on `GIN`", NUCLEI, "gin"),
    ],
)
def test_gains_that_the_readme_quotes_are_those_of_the_scores(images: str, folder: Path, augment: str) -> None:
    expected = [images]
    for name in ("default, equal time", "default"):
        more = [folder / "more" / one for one in ("gin", "time")] if images == "nuclei, on `GIN`" else []
        found = difference([folder / augment, folder / "time" / augment, *more], name, draws=range(5))
        expected += [*in_points(found.mean), ", ".join(in_points(*found.draws.values()))]
    assert f"| {' | '.join(expected)} |" in (EXAMPLES.parent / "README.md").read_text()
