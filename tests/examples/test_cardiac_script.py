"""The example's script from end to end, on volumes so small that a run takes seconds."""

import json
import shutil
from pathlib import Path

import acdc_cooperative
import nibabel as nib
import numpy as np
import pytest
from cardiac.batches import TrainingBatches
from cardiac.outputs import Outputs
from cardiac.report import read_scores

pytest.importorskip("torchio")

TINY = [
    *("--image-size", "32", "--no-halve", "--depth", "2", "--width", "2"),
    *("--batch-size", "4", "--iterations", "4", "--device", "cpu"),
]
FILES = ["configuration.json", "curves.png", "report.html", "scores.csv", "table.json", "table.md", "table.png"]


def write_patient(folder, seed, structures=(1, 2, 3)):
    """A patient in the preprocessed layout: bright discs in each other on noise."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    y, x = np.mgrid[:40, :40] - 19.5
    for phase, radius in (("ED", 11), ("ES", 8)):
        distance = np.hypot(y, x + random.uniform(-3, 3)) / radius
        plane = np.select([distance < 0.4, distance < 0.7, distance < 1], [1, 2, 3], 0)
        plane[~np.isin(plane, structures)] = 0
        labels = np.repeat(plane[None], 3, 0).astype(np.uint8)
        image = (labels / 3 + random.uniform(0, 0.3, labels.shape)).astype(np.float32)
        affine = np.diag([1.36719, 1.36719, 10, 1])
        nib.save(nib.Nifti1Image(image.T, affine), folder / f"{phase}_img.nii.gz")
        nib.save(nib.Nifti1Image(labels.T, affine), folder / f"{phase}_seg.nii.gz")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three patients to train, validate and test on, and one of another data set without RV."""
    root = tmp_path_factory.mktemp("data")
    for seed, patient in enumerate(("A", "B", "C")):
        write_patient(root / "acdc" / patient, seed)
    write_patient(root / "other" / "D", 3, structures=(1, 2))
    return root


@pytest.fixture(scope="module")
def flags(data):
    return ["--acdc", str(data / "acdc"), "--external", f"Other={data / 'other'}", *TINY]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """The output of one uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert acdc_cooperative.main([*flags, "--output", str(output)]) == 0
    return output


def test_a_run_leaves_scores_table_and_figures(whole):
    assert sorted(path.name for path in whole.iterdir() if path.is_file()) == FILES
    assert all((whole / method / "draw-0" / "hard_examples.png").exists() for method in ("standard", "cooperative"))
    scores = read_scores(whole / "scores.csv")
    columns = ["ACDC", "RandBias", "RandSpike", "RandGhosting", "RandMotion", "Other"]
    found = {(s.method, s.stage, s.column, s.phase, s.structure) for s in scores}
    for method in ("standard", "cooperative"):
        for stage in ("FTN", "FTN+STN"):
            for column in columns:
                structures = ("LV", "MYO") if column == "Other" else ("LV", "MYO", "RV")
                for phase in ("ED", "ES"):
                    assert {(method, stage, column, phase, name) for name in structures} <= found
    assert len(scores) == len(found) == 2 * 2 * (5 * 6 + 4)
    assert all(0 <= s.value <= 1 for s in scores)
    table = json.loads((whole / "table.json").read_text())
    assert table["columns"] == [*columns, "average"]
    assert [(row["method"], row["stage"]) for row in table["rows"]] == [
        (method, stage) for method in ("standard", "cooperative") for stage in ("FTN", "FTN+STN")
    ]


def test_the_page_of_a_run_is_made_again_from_its_folder_alone(whole, tmp_path):
    page = (whole / "report.html").read_bytes()
    for section in ("result", "curves", "positions", "cases", "moments", "settings"):
        assert f'<section id="{section}">'.encode() in page
    assert b"Not kept" not in page
    assert "--image-size 32 --no-halve" in page.decode()  # the command
    shutil.copytree(whole, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "report.html").unlink()
    configuration = json.loads((whole / "configuration.json").read_text())
    acdc_cooperative.conclude(Outputs(tmp_path / "elsewhere", configuration))
    assert (tmp_path / "elsewhere" / "report.html").read_bytes() == page


def test_both_methods_have_the_same_budget_and_start_from_the_same_weights(whole):
    done = [json.loads((whole / method / "draw-0" / "done.json").read_text()) for method in ("standard", "cooperative")]
    assert [about["iterations"] for about in done] == [4, 4]
    first = [(whole / method / "draw-0" / "log.csv").read_text().splitlines() for method in ("standard", "cooperative")]
    one, other = (dict(zip(lines[0].split(","), lines[1].split(","), strict=True)) for lines in first)
    for name in ("segmentation", "reconstruction", "shape_from_logits", "shape_from_labels"):
        assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-5)
    assert "hard_image_segmentation" not in one
    assert "hard_image_segmentation" in other


def test_the_last_line_says_where_the_results_are(whole, flags, capsys):
    assert acdc_cooperative.main([*flags, "--output", str(whole)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2] == f"The run as one page: {whole / 'report.html'}"
    assert lines[-1].startswith(f"Results: {whole / 'table.md'}")
    assert any("too short to rank methods" in line for line in lines)


def test_what_is_finished_is_not_run_again(whole, flags, monkeypatch):
    before = (whole / "scores.csv").read_bytes()
    monkeypatch.setattr(acdc_cooperative, "train_and_test", None)
    assert acdc_cooperative.main([*flags, "--output", str(whole)]) == 0
    assert (whole / "scores.csv").read_bytes() == before


def test_an_interrupted_run_goes_on_to_the_same_scores(whole, flags, tmp_path, monkeypatch, capsys):
    def interrupt(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return batch(self, number)

    batch = TrainingBatches.batch
    output = tmp_path / "a run"
    with monkeypatch.context() as patched:
        patched.setattr(TrainingBatches, "batch", interrupt)
        assert acdc_cooperative.main([*flags, "--output", str(output)]) == 130
    assert f"--output '{output}'" in capsys.readouterr().err
    assert not (output / "scores.csv").exists()
    assert acdc_cooperative.main([*flags, "--output", str(output)]) == 0
    assert "going on from iteration 2" in capsys.readouterr().out
    assert (output / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


def test_methods_may_be_run_apart_in_any_order(whole, flags, tmp_path):
    for method in ("cooperative", "standard"):
        assert acdc_cooperative.main([*flags, "--output", str(tmp_path), "--methods", method]) == 0
    assert (tmp_path / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()


def test_a_split_may_be_given(flags, tmp_path):
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": ["C", "B"], "validation": ["B"], "test": ["A"]}))
    assert acdc_cooperative.main([*flags, "--split", str(file)]) == 2
    file.write_text(json.dumps({"train": ["C"], "validation": ["B"], "test": ["A"]}))
    output = ["--output", str(tmp_path / "run"), "--methods", "standard"]
    assert acdc_cooperative.main([*flags, "--split", str(file), *output]) == 0
    acdc = {s.patient for s in read_scores(tmp_path / "run" / "scores.csv") if s.column != "Other"}
    assert acdc == {"A"}


def bad_flags(data):
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
        "odd batch": ([*acdc, "--batch-size", "5"], "--batch-size must be even"),
        "no iterations": ([*acdc, "--iterations", "0"], "--iterations must be positive"),
        "four draws": ([*acdc, "--draws", "4"], "--draws must be at most 3"),
        "unknown spacing": ([*acdc, "--corruption-spacing", "mm"], "--corruption-spacing must be one of"),
        "unknown device": ([*acdc, "--device", "abacus"], "--device abacus"),
        "no thread": ([*acdc, "--threads", "0"], "--threads"),
        "unknown preset": ([*acdc, "--preset", "slow"], "slow"),
        "no number": ([*acdc, "--iterations", "many"], "many"),
    }


@pytest.mark.parametrize("case", bad_flags(Path()))
def test_bad_input_is_one_line_and_exit_code_2_and_writes_nothing(data, tmp_path, capsys, case):
    given, named = bad_flags(data)[case]
    assert acdc_cooperative.main([*TINY, *given, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "run").exists()


def test_a_broken_file_is_named_and_nothing_is_written(data, tmp_path, capsys):
    shutil.copytree(data / "acdc", tmp_path / "acdc")
    broken = tmp_path / "acdc" / "B" / "ES_img.nii.gz"
    broken.write_bytes(broken.read_bytes()[:200])
    assert acdc_cooperative.main(["--acdc", str(tmp_path / "acdc"), *TINY, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(broken) in error
    assert not (tmp_path / "run").exists()


def test_results_of_other_settings_are_not_mixed(whole, flags, capsys):
    assert acdc_cooperative.main([*flags, "--seed", "1", "--output", str(whole)]) == 2
    assert "that run has seed 0, this one 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "configuration.json").write_text('{"preset": '), "configuration.json: not a file of"),
        (lambda folder: (folder / "standard" / "draw-0" / "log.csv").unlink(), "log.csv: cannot be read"),
        (lambda folder: (folder / "standard" / "draw-0" / "scores.csv").unlink(), "scores.csv: cannot be read"),
    ],
)
def test_damaged_results_are_named(whole, flags, tmp_path, capsys, spoil, named):
    shutil.copytree(whole, tmp_path / "run")
    spoil(tmp_path / "run")
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert named in error


def test_an_output_folder_that_cannot_be_made_is_refused(flags, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written to" in capsys.readouterr().err


@pytest.mark.slow
def test_without_data_a_phantom_is_generated_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert acdc_cooperative.main([*TINY, "--output", str(tmp_path / "run")]) == 0
    columns = {score.column for score in read_scores(tmp_path / "run" / "scores.csv")}
    assert {"ACDC", "RandMotion", "M&Ms", "M&Ms/A", "M&Ms/B"} <= columns
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert acdc_cooperative.main([*TINY, "--output", str(tmp_path / "run")]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == made


def test_lost_best_weights_are_one_line_and_exit_code_2(flags, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    folder = tmp_path / "run" / "standard" / "draw-0"
    (folder / "best.pt").unlink()
    (folder / "done.json").unlink()
    assert acdc_cooperative.main([*flags, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "best.pt" in error
    assert f"Remove {folder}, to start over." in error
