"""The example's script from end to end, on volumes so small that a run takes seconds."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

import acdc_cooperative
from cardiac.data.shifts import SEVERITIES, SHIFTS, column_of
from cardiac.report.conclusion import conclude
from cardiac.run.arguments import parse
from cardiac.run.presets import Preset
from study.data.batches import Batch, TrainingBatches
from study.report import ranking
from study.report.conclusion import trained_alone
from study.run import callbacks, cost, experiment, training
from study.run.outputs import Finished, Outputs
from study.run.scores import METRICS, VALIDATION, read_scores
from tests.support.damage import NO_FILES, in_place_of
from tests.support.patients import write_patient

pytest.importorskip("torchio")

TINY = [
    *("--image-size", "32", "--no-halve", "--depth", "2", "--width", "2"),
    *("--batch-size", "4", "--iterations", "4", "--device", "cpu"),
    *("--methods", "standard", "cooperative"),
]
FILES = [
    *("comparison.csv", "configuration.json", "curves.png", "report.html", "run.toml"),
    *("scores.csv.xz", "table.json", "table.md", "table.png", "validation.csv.xz"),
]


@pytest.fixture(scope="module", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["XDG_CACHE_HOME"])


@pytest.fixture(scope="module", autouse=True)
def brief_measurement() -> Iterator[None]:
    """Measure what a step costs by a single one, as there are but four of each training."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("ROUNDS", "STEPS", "WARM_UP"):
            patched.setattr(cost, name, 1)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients to train, validate and test on, and one of another data set without RV."""
    root = tmp_path_factory.mktemp("data")
    for seed, patient in enumerate(("A", "B", "C")):
        write_patient(root / "acdc" / patient, seed)
    write_patient(root / "other" / "D", 3, structures=(1, 2))
    return root


@pytest.fixture(scope="module")
def flags(data: Path) -> list[str]:
    return ["--acdc", str(data / "acdc"), "--external", f"Other={data / 'other'}", *TINY]


@pytest.fixture(scope="module")
def whole(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert acdc_cooperative.main([*flags, "--output", str(output)]) == 0
    return output


def test_a_run_leaves_scores_table_and_figures(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir() if path.is_file()) == FILES
    assert all((whole / method / "draw-0" / "hard_examples.png").exists() for method in ("standard", "cooperative"))
    scores = read_scores(whole)
    columns = ["ACDC", "RandBias", "RandSpike", "RandGhosting", "RandMotion", "Other"]
    found = {(s.method, s.stage, s.column, s.phase, s.structure) for s in scores}
    for method in ("standard", "cooperative"):
        for stage in ("FTN", "FTN+STN"):
            for column in columns:
                structures = ("LV", "MYO") if column == "Other" else ("LV", "MYO", "RV")
                for phase in ("ED", "ES"):
                    assert {(method, stage, column, phase, name) for name in structures} <= found
    assert len(found) == 2 * 2 * (5 * 6 + 4)
    by_metric = {metric: [s.value for s in scores if s.metric == metric] for metric in METRICS}
    assert len(by_metric["dice"]) == len(by_metric["missed"]) == len(found)
    assert len(by_metric["hd95"]) == len(by_metric["assd"]) == sum(value < 1 for value in by_metric["missed"])
    assert all(0 <= value <= 1 for value in by_metric["dice"] + by_metric["missed"])
    table = json.loads((whole / "table.json").read_text())
    assert table["columns"] == [*columns, "average"]
    assert [(row["method"], row["stage"]) for row in table["rows"]] == [
        (method, stage) for method in ("standard", "cooperative") for stage in ("FTN", "FTN+STN")
    ]


def test_the_page_of_a_run_is_made_again_from_its_folder_alone(whole: Path, tmp_path: Path) -> None:
    page = (whole / "report.html").read_bytes()
    for section in ("result", "curves", "positions", "cases", "moments", "settings"):
        assert f'<section id="{section}">'.encode() in page
    assert b"Not kept" not in page
    assert "--image-size 32 --no-halve" in page.decode()  # the command
    shutil.copytree(whole, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "report.html").unlink()
    configuration = json.loads((whole / "configuration.json").read_text())
    conclude(Outputs(tmp_path / "elsewhere", configuration))
    assert (tmp_path / "elsewhere" / "report.html").read_bytes() == page


def test_both_methods_have_the_same_budget_and_start_from_the_same_weights(whole: Path) -> None:
    done = [json.loads((whole / method / "draw-0" / "done.json").read_text()) for method in ("standard", "cooperative")]
    assert [about["iterations"] for about in done] == [4, 4]
    first = [(whole / method / "draw-0" / "log.csv").read_text().splitlines() for method in ("standard", "cooperative")]
    one, other = (dict(zip(lines[0].split(","), lines[1].split(","), strict=True)) for lines in first)
    for name in ("segmentation", "reconstruction", "shape_from_logits", "shape_from_labels"):
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5)
    assert "hard_image_segmentation" not in one
    assert "hard_image_segmentation" in other


def test_the_last_line_says_where_the_results_are(
    whole: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert acdc_cooperative.main([*flags, "--output", str(whole)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2] == f"The run as one page: {whole / 'report.html'}"
    assert lines[-1].startswith(f"Results: {whole / 'table.md'}")
    assert any("too short to rank methods" in line for line in lines)


def test_what_is_finished_is_not_run_again(whole: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = (whole / "scores.csv.xz").read_bytes()
    monkeypatch.setattr(experiment, "train_and_test", None)
    assert acdc_cooperative.main([*flags, "--output", str(whole)]) == 0
    assert (whole / "scores.csv.xz").read_bytes() == before


@contextmanager
def interrupted_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the batch of a number end a training as Ctrl-C does."""
    batch = TrainingBatches.batch

    def interrupt(self: TrainingBatches, asked: int) -> Batch:
        if asked == number:
            raise KeyboardInterrupt
        return batch(self, asked)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingBatches, "batch", interrupt)
        yield


def test_an_interrupted_run_goes_on_to_the_same_scores(
    whole: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a run"
    with interrupted_at(2, monkeypatch):
        assert acdc_cooperative.main([*flags, "--output", str(output)]) == 130
    assert f"--output '{output}'" in capsys.readouterr().err
    assert not (output / "scores.csv.xz").exists()
    assert acdc_cooperative.main([*flags, "--output", str(output)]) == 0
    assert "going on from iteration 2" in capsys.readouterr().out
    assert (output / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


def test_a_killed_run_goes_on_to_the_same_scores(
    whole: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(self: TrainingBatches, number: int) -> Batch:
        if number == 3:
            raise RuntimeError("killed")  # nothing is saved on it, as on a kill
        return batch(self, number)

    batch = TrainingBatches.batch
    output = tmp_path / "run"
    monkeypatch.setattr(callbacks, "SECONDS", 0)
    monkeypatch.setattr(training, "ROUNDS", 1)  # one epoch, in whose middle it is
    with monkeypatch.context() as patched:
        patched.setattr(TrainingBatches, "batch", kill)
        with pytest.raises(RuntimeError, match="killed"):
            acdc_cooperative.main([*flags, "--output", str(output)])
    assert acdc_cooperative.main([*flags, "--output", str(output), "--resume"]) == 0
    assert "going on from iteration 3" in capsys.readouterr().out
    whole_weights, weights = (
        torch.load(folder / "standard" / "draw-0" / "last.pt", weights_only=True)["model"] for folder in (whole, output)
    )
    assert all(torch.equal(weights[name], whole_weights[name]) for name in whole_weights)


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on_to_the_same_scores(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = """
import os, signal, sys
import acdc_cooperative
from study.run import callbacks, training
from study.data.batches import TrainingBatches

def kill(self, number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(self, number)

callbacks.SECONDS, batch, TrainingBatches.batch = 0, TrainingBatches.batch, kill
acdc_cooperative.main(sys.argv[1:])
"""
    arguments = [*flags, "--output", str(tmp_path / "run")]
    examples = str(Path(acdc_cooperative.__file__).parent)
    threads = str(torch.get_num_threads())  # another number would round otherwise
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([examples, *sys.path]), "OMP_NUM_THREADS": threads}
    process = subprocess.run([sys.executable, "-c", program, *arguments], env=environment)
    assert process.returncode == -signal.SIGKILL
    assert acdc_cooperative.main([*arguments, "--resume"]) == 0
    assert "going on from iteration 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


def test_a_run_that_found_too_little_memory_goes_on_later_to_the_same_scores(
    whole: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_out(self: TrainingBatches, number: int) -> Batch:
        if number == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return batch(self, number)

    batch = TrainingBatches.batch
    with monkeypatch.context() as patched:
        patched.setattr(TrainingBatches, "batch", run_out)
        assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: --batch-size 4 was too much for the memory of cpu: lower --batch-size")
    assert not (tmp_path / "run" / "scores.csv.xz").exists()
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "run")]) == 0
    assert "going on from iteration 2" in capsys.readouterr().out
    assert (tmp_path / "run" / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


def test_without_a_shape_prior_there_is_one_stage(flags: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert acdc_cooperative.main([*flags, "--output", str(output), "--methods", "standard-without-stn", "noise"]) == 0
    rows = json.loads((output / "table.json").read_text())["rows"]
    assert [(row["method"], row["stage"]) for row in rows] == [
        ("standard-without-stn", "FTN"),
        ("noise", "FTN"),
        ("noise", "FTN+STN"),
    ]
    assert "noise: standard, under Gaussian noise" in (output / "table.md").read_text()


def test_the_network_alone_is_the_reference_and_no_report_has_numbers_of_heads_that_it_leaves_untrained(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert acdc_cooperative.main([*flags, "--output", str(output), "--methods", "standard", "plain"]) == 0
    validated = [line for line in capsys.readouterr().out.splitlines() if "Validation: " in line]
    assert ["reconstruction error" in line for line in validated] == [False, True]
    assert ["hard dice" in line for line in validated] == [False, True]
    place = output / "plain" / "draw-0"
    about = json.loads((place / "done.json").read_text())
    assert 0 <= about["validation dice"] <= 1
    assert not {"reconstruction error", "hard dice"} & {*about}
    assert not (place / "hard_examples.png").exists()
    assert not (place / "hard_examples").exists()
    rows = json.loads((output / "table.json").read_text())["rows"]
    assert [(row["method"], row["stage"]) for row in rows] == [
        ("plain", "FTN"),
        ("standard", "FTN"),
        ("standard", "FTN+STN"),
    ]
    assert "## Differences to plain, patient by patient" in (output / "table.md").read_text()
    with (output / "comparison.csv").open(newline="") as file:
        compared = {(line["method"], line["reference"], line["stage"]) for line in csv.DictReader(file)}
    assert compared == {("standard", "plain", "FTN"), ("standard", "plain", "FTN+STN")}
    page = (output / "report.html").read_text()
    assert "points ahead of plain" in page
    assert "Not kept" not in page


def test_the_log_of_heads_that_are_left_untrained_is_not_shown() -> None:
    log = [{"iteration": 1.0, "loss": 1.0, "reconstruction": 2.0, "shape_from_logits": 3.0, "val_refined_iou": 0.1}]
    shown = {
        name: [*trained_alone(Finished(name, 0, [], log, {}))[0]]
        for name in ("plain", "standard-without-stn", "standard")
    }
    assert shown == {
        "plain": ["iteration", "loss"],
        "standard-without-stn": ["iteration", "loss", "reconstruction"],
        "standard": [*log[0]],
    }


def test_how_hard_the_hard_examples_are_is_kept_and_said(
    whole: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    about = json.loads((whole / "cooperative" / "draw-0" / "done.json").read_text())
    assert 0 < about["reconstruction error"] < 1
    assert 0 <= about["hard dice"] <= 1
    assert 0 <= about["validation dice"] <= 1


def test_what_methods_are_chosen_by_is_kept_and_said(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    columns = [column_of(kind, severity) for kind in SHIFTS for severity in SEVERITIES]
    for method in ("standard", "cooperative"):
        place = whole / method / "draw-0"
        found = json.loads((place / "done.json").read_text())["validated"]
        assert [*found["by shift"]] == columns
        assert found["patients"] == 1
        assert found["shifted dice"] == pytest.approx(fmean(found["by shift"].values()), abs=1e-4)
        assert all(0 <= dice <= 1 for dice in (found["dice"], *found["by shift"].values()))
        scores = read_scores(place, VALIDATION)
        assert {(score.stage, score.metric) for score in scores} == {("FTN", "dice")}
        assert [*dict.fromkeys(score.column for score in scores)] == ["ACDC", *columns]
        assert not {score.patient for score in scores} & {score.patient for score in read_scores(place)}
    of_both = [
        score for name in ("standard", "cooperative") for score in read_scores(whole / name / "draw-0", VALIDATION)
    ]
    assert read_scores(whole, VALIDATION) == of_both
    assert re.search(
        r"on 1 patients to choose by: Dice 0\.\d+, and 0\.\d+ under shifts", (whole / "table.md").read_text()
    )
    assert rank_recipes(whole, capsys).count("| standard") == 1


def rank_recipes(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert ranking.main([str(run)]) == 0
    return capsys.readouterr().out


def test_what_a_step_costs_is_measured_kept_and_shown(whole: Path) -> None:
    for method in ("standard", "cooperative"):
        found = json.loads((whole / method / "draw-0" / "done.json").read_text())["cost"]
        assert found > 0
        assert json.loads((whole / method / "draw-0" / "cost.json").read_text()) == {"cost": found}
        assert f"each costs {found:.2f} plain steps." in (whole / "table.md").read_text()
        assert json.loads((whole / "table.json").read_text())["cost in plain steps"][method] == found
    head = (whole / "table.md").read_text().splitlines()[2]
    assert [cell.strip() for cell in head.strip("|").split("|")][:4] == [
        "method",
        "stage",
        "draws",
        "cost in plain steps",
    ]
    assert "equal_time" not in (whole / "configuration.json").read_text()


def test_measuring_a_step_changes_no_training(
    whole: Path, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "measure_cost", lambda *_: 1.0)
    torch.rand(7)
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path)]) == 0
    for method in ("standard", "cooperative"):
        ours, theirs = (torch.load(run / method / "draw-0" / "last.pt", weights_only=True) for run in (tmp_path, whole))
        assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])
    assert (tmp_path / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


def test_in_equal_time_iterations_and_schedule_shrink_by_the_first_cost_that_was_measured(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*flags, "--methods", "standard", "--iterations", "20", "--warm-up", "5", "--schedule", "cosine"]
    arguments += ["--equal-time", "--output", str(tmp_path / "run")]
    monkeypatch.setattr(training, "measure_cost", lambda *_: 2.5)
    with interrupted_at(6, monkeypatch):
        assert acdc_cooperative.main(arguments) == 130
    monkeypatch.setattr(training, "measure_cost", lambda *_: 99.0)
    assert acdc_cooperative.main(arguments) == 0
    place = tmp_path / "run" / "standard" / "draw-0"
    about = json.loads((place / "done.json").read_text())
    assert (about["cost"], about["iterations"], about["iterations of plain"]) == (2.5, 8, 20)
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["equal_time"] is True
    text = (tmp_path / "run" / "table.md").read_text()
    assert "8 iterations in" in text
    assert "which is the time of 20 plain ones; each costs 2.50 plain steps." in text
    assert "Equal time: every training took about as long" in text
    rates = [float(line["lr"]) for line in csv.DictReader((place / "log.csv").read_text().splitlines())]
    assert rates[1] == max(rates)  # the warm-up takes 2 iterations, not 5
    assert rates[-1] == 0  # and the cosine comes to its end after 8
    assert acdc_cooperative.main([each for each in arguments if each != "--equal-time"]) == 2


def test_several_augmentations_are_runs_of_their_own_and_compared(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*flags, "--methods", "standard", "--output", str(tmp_path / "runs")]
    assert acdc_cooperative.main([*arguments, "--augment", "none", "magic"]) == 2
    assert not (tmp_path / "runs").exists()
    assert acdc_cooperative.main([*arguments, "--augment", "none", "gin", "none"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["gin", "none"]
    assert re.search(r"^\| standard \+ gin ", capsys.readouterr().out, re.MULTILINE)
    of_standard = [score for score in read_scores(whole) if score.method == "standard"]
    assert read_scores(tmp_path / "runs" / "none") == of_standard
    assert read_scores(tmp_path / "runs" / "gin") != of_standard


def test_a_model_of_a_library_fills_the_same_table(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    output = tmp_path / "run"
    model = ["--model", "smp:Unet:resnet18", "--depths", "5", "4", "--iterations", "2"]
    assert acdc_cooperative.main([*flags, *model, "--methods", "cooperative", "--output", str(output)]) == 0
    assert "reconstruction error" in capsys.readouterr().out
    table = json.loads((output / "table.json").read_text())
    assert [row["stage"] for row in table["rows"]] == ["Unet", "Unet+STN"]
    assert table["configuration"]["model"] == "smp:Unet:resnet18"
    assert table["configuration"]["layers"] == ["encoder[5]", "encoder[4]"]
    assert acdc_cooperative.main([*flags, "--iterations", "2", "--output", str(output)]) == 2
    assert "that run has model 'smp:Unet:resnet18', this one 'FTN'" in capsys.readouterr().err


def test_the_settings_that_a_run_leaves_behind_repeat_it(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = str(whole / "run.toml")
    given, again = (vars(parse(each)) for each in (flags, ["--config", settings]))
    assert {name for name in again if again[name] != given.get(name)} == {"config", "output"}
    assert acdc_cooperative.main(["--config", settings]) == 0
    assert (whole / "run.toml").read_text() in capsys.readouterr().out
    elsewhere = ["--config", settings, "--methods", "standard", "--output", str(tmp_path)]
    assert acdc_cooperative.main(elsewhere) == 0
    theirs = [score for score in read_scores(whole) if score.method == "standard"]
    assert read_scores(tmp_path) == theirs


def test_settings_that_an_older_run_did_not_know_are_the_defaults(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / "configuration.json"
    older = json.loads(file.read_text())
    assert not {"model", "layers"} & {*older}
    file.write_text(json.dumps({name: value for name, value in older.items() if name not in ("crop", "precision")}))
    arguments = [*flags, "--output", str(tmp_path / "run")]
    assert acdc_cooperative.main([*arguments, "--precision", "bfloat16"]) == 2
    assert "that run has precision 'float32', this one 'bfloat16'" in capsys.readouterr().err
    assert acdc_cooperative.main(arguments) == 0


def test_augmentation_is_a_setting_that_a_run_without_it_does_not_mention(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "augment" not in json.loads((whole / "configuration.json").read_text())
    assert acdc_cooperative.main([*flags, "--augment", "none", "--output", str(whole)]) == 0
    assert acdc_cooperative.main([*flags, "--augment", "gin", "--output", str(whole)]) == 2
    assert "that run has augment 'none', this one 'gin'" in capsys.readouterr().err
    output = tmp_path / "run"
    gin = [*flags, "--methods", "standard", "--augment", "gin", "--output", str(output)]
    assert acdc_cooperative.main(gin) == 0
    assert json.loads((output / "configuration.json").read_text())["augment"] == "gin"
    assert read_scores(output) != [score for score in read_scores(whole) if score.method == "standard"]
    shutil.copytree(output, tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "standard")
    assert acdc_cooperative.main(["--config", str(output / "run.toml"), "--output", str(tmp_path / "again")]) == 0
    assert read_scores(tmp_path / "again") == read_scores(output)


def test_volumes_are_kept_where_it_is_said_and_the_scores_are_the_same_without(
    whole: Path, flags: list[str], tmp_path: Path, user_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (user_cache / "latentaug" / "frames").is_dir()
    standard = ["--methods", "standard"]
    for number, choice in enumerate((["--cache", str(tmp_path / "kept")], ["--no-cache"])):
        output = tmp_path / str(number)
        before = {*user_cache.rglob("*")}
        assert acdc_cooperative.main([*flags, *standard, *choice, "--output", str(output)]) == 0
        assert {*user_cache.rglob("*")} == before
        one, other = (folder / "standard" / "draw-0" / "scores.csv.xz" for folder in (output, whole))
        assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "kept").is_dir()


def test_the_share_of_time_spent_on_data_is_said_and_kept(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert acdc_cooperative.main([*flags, "--methods", "standard", "--output", str(tmp_path)]) == 0
    share = json.loads((tmp_path / "standard" / "draw-0" / "done.json").read_text())["data share"]
    assert 0 < share < 1
    assert f"data: {100 * share:.1f} % of the training time" in capsys.readouterr().out


def test_methods_may_be_run_apart_in_any_order(whole: Path, flags: list[str], tmp_path: Path) -> None:
    for method in ("cooperative", "standard"):
        assert acdc_cooperative.main([*flags, "--output", str(tmp_path), "--methods", method]) == 0
    assert (tmp_path / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


def test_a_split_may_be_given(flags: list[str], tmp_path: Path) -> None:
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["C", "B"], "validation": ["B"], "test": ["A"]}))
    assert acdc_cooperative.main([*flags, "--split", str(file)]) == 2
    file.write_text(json.dumps({"train": ["C"], "validation": ["B"], "test": ["A"]}))
    output = ["--output", str(tmp_path / "run"), "--methods", "standard"]
    assert acdc_cooperative.main([*flags, "--split", str(file), *output]) == 0
    acdc = {s.patient for s in read_scores(tmp_path / "run") if s.column != "Other"}
    assert acdc == {"A"}
    assert f'split = "{file.resolve()}"' in (tmp_path / "run" / "run.toml").read_text()
    file.write_text(json.dumps({"train": ["B"], "validation": ["C"], "test": ["A"]}))
    assert acdc_cooperative.main([*flags, "--split", str(file), *output]) == 2  # others would train into one table


def test_published_numbers_are_shown_and_change_no_result(
    whole: Path, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "published.csv"
    file.write_text("method,stage,column,value\npaper,FTN,average,0.125\n")
    assert acdc_cooperative.main([*flags, "--published", str(file), "--output", str(tmp_path / "run")]) == 0
    assert "0.125" in next(line for line in capsys.readouterr().out.splitlines() if "| paper " in line)
    for name in ("scores.csv.xz", "comparison.csv", "configuration.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def bad_flags(data: Path) -> dict[str, tuple[list[str], str]]:
    """Flags that cannot work, and what the one line must name."""
    acdc = ["--acdc", str(data / "acdc")]
    return {
        "missing folder": (["--acdc", str(data / "absent")], f"{data / 'absent'}: no such folder"),
        "one patient": (["--acdc", str(data / "other")], f"{data / 'other'}: a training, a validation and a test"),
        "missing test set": ([*acdc, "--external", f"X={data / 'absent'}"], "absent"),
        "missing M&Ms": ([*acdc, "--mnms", str(data / "absent")], "absent"),
        "test set without a name": ([*acdc, "--external", str(data / "other")], "NAME=DIR"),
        "test set of a taken name": ([*acdc, "--external", f"RandBias={data / 'other'}"], "--external RandBias"),
        "test set called as the mean": ([*acdc, "--external", f"average={data / 'other'}"], "--external average"),
        "too large a seed": ([*acdc, "--seed", str(10**30)], "--seed must be in"),
        "the same folder twice": ([*acdc, "--external", f"X={data / 'acdc'}"], "another folder"),
        "test set alone": (["--external", f"X={data / 'other'}"], "need --acdc"),
        "missing split": ([*acdc, "--split", str(data / "absent.json")], "absent.json"),
        "missing published": ([*acdc, "--published", str(data / "absent.csv")], "absent.csv"),
        "odd batch": ([*acdc, "--batch-size", "5"], "--batch-size must be even"),
        "no iterations": ([*acdc, "--iterations", "0"], "--iterations must be positive"),
        "four draws": ([*acdc, "--draws", "4"], "--draws must be at most 3"),
        "unknown spacing": ([*acdc, "--corruption-spacing", "mm"], "--corruption-spacing must be one of"),
        "odd crop": ([*acdc, "--crop", "30"], "--crop must be a multiple of 4"),
        "crop beyond the image": ([*acdc, "--crop", "64"], "--crop must be"),
        "unknown schedule": ([*acdc, "--schedule", "linear"], "--schedule must be one of"),
        "unknown weights": ([*acdc, "--weights", "first"], "--weights must be one of"),
        "unknown precision": ([*acdc, "--precision", "int8"], "--precision must be one of"),
        "unknown device": ([*acdc, "--device", "abacus"], "--device abacus"),
        "no thread": ([*acdc, "--threads", "0"], "--threads"),
        "unknown preset": ([*acdc, "--preset", "slow"], "slow"),
        "no number": ([*acdc, "--iterations", "many"], "many"),
        "unknown augmentation": ([*acdc, "--augment", "magic"], "--augment must be one of ('none', 'strong', 'nnunet'"),
        "codes that the paper's network lacks": ([*acdc, "--methods", "dsu"], "--methods dsu changes codes of encoder"),
        "unknown method": ([*acdc, "--methods", "magic"], "magic"),
        "unknown model": ([*acdc, "--model", "Unet"], "--model must be"),
        "unknown layer": ([*acdc, "--layers", "encodr"], "closest: 'encoder'"),
        "layers and depths": ([*acdc, "--layers", "encoder", "--depths", "5"], "Leave one of them out"),
        "depths of the paper's network": ([*acdc, "--depths", "5"], "--depths counts a library's encoder"),
        "weights of the paper's network": ([*acdc, "--encoder-weights", "imagenet"], "--encoder-weights imagenet"),
        "nothing to resume": ([*acdc, "--resume"], "has nothing to go on from"),
    }


@pytest.mark.parametrize("case", bad_flags(Path()))
def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    given, named = bad_flags(data)[case]
    assert acdc_cooperative.main([*TINY, *given, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "run").exists()


def test_a_broken_file_is_named_and_nothing_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data / "acdc", tmp_path / "acdc")
    broken = tmp_path / "acdc" / "B" / "ES_img.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    assert acdc_cooperative.main(["--acdc", str(tmp_path / "acdc"), *TINY, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(broken) in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--config", "--split", "--published"])
@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_is_named_and_not_waited_for(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, what: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    in_place_of(file, what)
    flags = ["--acdc", str(data / "acdc"), *TINY, flag, str(file), "--output", str(tmp_path / "run")]
    assert acdc_cooperative.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert str(file) in error
    assert not (tmp_path / "run").exists()


def test_a_damaged_volume_ends_the_command_with_code_2_and_one_line(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "acdc", tmp_path / "acdc")
    damaged = tmp_path / "acdc" / "B" / "ES_img.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    flags = ["--acdc", str(tmp_path / "acdc"), *TINY, "--output", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, acdc_cooperative.__file__, *flags], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"error: {damaged}: cannot be read, it is truncated or no NIfTI file (it ends too early); copy it again.\n"
    )


def test_the_learning_rate_rises_and_falls() -> None:
    def rates(**settings: Any) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        schedule = training.learning_rate_schedule(optimizer, Preset(**settings), 10)
        values = []
        for _ in range(10):
            values.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return values

    assert rates() == [2.0] * 10
    assert rates(warm_up=3)[:4] == [0.5, 1.0, 1.5, 2.0]
    falling = rates(schedule="cosine", warm_up=2)
    assert falling[2] == 2.0
    assert falling[2:] == sorted(falling[2:], reverse=True)
    assert falling[6] == pytest.approx(1.0)
    assert 0 < falling[-1] < 0.1


def test_results_of_other_settings_are_not_mixed(
    whole: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert acdc_cooperative.main([*flags, "--seed", "1", "--output", str(whole)]) == 2
    assert "that run has seed 0, this one 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "configuration.json").write_text('{"preset": '), "configuration.json: not a file of"),
        (lambda folder: (folder / "standard" / "draw-0" / "log.csv").unlink(), "log.csv: cannot be read"),
        (lambda folder: (folder / "standard" / "draw-0" / "scores.csv.xz").unlink(), "scores.csv.xz: cannot be read"),
    ],
)
def test_damaged_results_are_named(
    whole: Path,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    named: str,
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    spoil(tmp_path / "run")
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_an_output_folder_that_cannot_be_made_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
def test_without_data_a_phantom_is_generated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert acdc_cooperative.main([*TINY, "--output", str(tmp_path / "run")]) == 0
    columns = {score.column for score in read_scores(tmp_path / "run")}
    parts = {"M&Ms/A", "M&Ms/B", "M&Ms/centre 1", "M&Ms/centre 2"}
    assert {"ACDC", "RandMotion", "M&Ms"} | parts <= columns
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert acdc_cooperative.main([*TINY, "--output", str(tmp_path / "run")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == made


@pytest.fixture
def untested(whole: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A run whose standard training is done and not tested yet, by the weights that are named."""

    def make(weights: str) -> Path:
        shutil.copytree(whole, tmp_path / weights)
        (tmp_path / weights / "standard" / "draw-0" / "done.json").unlink()
        file = tmp_path / weights / "configuration.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": weights}))
        return tmp_path / weights

    return make


@pytest.mark.parametrize(("weights", "other"), [("best", "last"), ("last", "best")])
def test_the_weights_that_are_asked_for_are_tested(
    untested: Callable[[str], Path], flags: list[str], weights: str, other: str
) -> None:
    run = untested(weights)
    folder = run / "standard" / "draw-0"

    def reconstruction_error(halved: str | None = None) -> float:
        if halved is not None:
            was = torch.load(folder / f"{halved}.pt", weights_only=True)
            halves = {n: t / 2 if t.is_floating_point() else t for n, t in was["model"].items()}
            torch.save({**was, "model": halves}, folder / f"{halved}.pt")
        assert acdc_cooperative.main([*flags, "--weights", weights, "--output", str(run)]) == 0
        about = json.loads((folder / "done.json").read_text())
        (folder / "done.json").unlink()
        return about["reconstruction error"]

    before = reconstruction_error()
    assert reconstruction_error(halved=other) == before
    assert reconstruction_error(halved=weights) != before


def test_lost_best_weights_are_one_line_and_exit_code_2(
    untested: Callable[[str], Path],
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # This run is a copy, whose weights would be found where they were written.
    monkeypatch.setattr("latentaug.training.best.Best.folder", "")
    run = untested("best")
    folder = run / "standard" / "draw-0"
    (folder / "best.pt").unlink()
    assert acdc_cooperative.main([*flags, "--weights", "best", "--output", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "best.pt" in error
    assert f"Remove {folder}, to start over." in error
