"""The benchmarks: that each runs and writes what it found; and counts, which are alike on every machine."""

import json
import re
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import PARTS, main
from benchmarks.flops import OPTIONS, by_hand, count, count_option, expected
from benchmarks.measure import Measured, Step, Subject, fits, largest, take_turns
from benchmarks.memory import follow, kept
from benchmarks.paper import _table, masks, matmuls, shortcuts, steps, variants
from benchmarks.report import Options, Report, Table, place, write
from benchmarks.subjects import MASKERS, Size, authors, bare, compile_parts, cooperative_model, trained
from latentaug import FTN, cooperative_backward

CPU = torch.device("cpu")
QUICK = ["--quick", "--repeats", "1", "--threads", "1", "--device", "cpu"]


ON_A_GPU = {"step", "waits", "memory", "training"}
"""Parts that `gpu.sh --quick` runs, which continuous integration does by itself."""


def test_what_continuous_integration_runs_by_itself_is_in_that_script() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
    assert {line.split()[1] for line in script.read_text().splitlines() if line.startswith("benchmark ")} == ON_A_GPU


def test_what_steps_cost_is_quoted_as_measured() -> None:
    root = Path(__file__).parents[2]
    steps, *_ = json.loads((root / "benchmarks" / "results" / "cpu" / "step.json").read_text())["tables"]
    page = (root / "docs" / "explanation" / "costs.md").read_text()
    quoted = re.findall(r"^\| [^|]+ \| (.+) \|$", page[: page.index("**By arithmetic**")], re.MULTILINE)[1:]
    assert quoted == [" | ".join(f"{value:.2f}" for value in values[1:]) for values in steps["rows"].values()]


def test_the_arithmetic_that_the_docs_quote_is_what_was_counted() -> None:
    root = Path(__file__).parents[2]
    _, steps = json.loads((root / "benchmarks" / "results" / "cpu" / "flops.json").read_text())["tables"]
    page = (root / "docs" / "explanation" / "costs.md").read_text()
    counted = re.findall(r"^\| [^|]+ \| (.+) \|$", page[page.index("**By arithmetic**") :], re.MULTILINE)[1:4]
    assert counted == [" | ".join(f"{value:.2f}" for value in values) for values in steps["rows"].values()]


def test_the_seconds_that_the_docs_quote_are_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    steps, *_, options, _ = json.loads((root / "benchmarks" / "results" / "cpu" / "paper.json").read_text())["tables"]
    page = (root / "docs" / "explanation" / "costs.md").read_text()
    for name, (seconds, _, over_bare, over_standard, peak, *_) in steps["rows"].items():
        row = f"| {name} | {seconds:.2f} | {over_bare:.3g} | {over_standard:.2f} | {peak:.1f} GB |"
        assert row.replace("1.00", "1") in page
    quoted = re.findall(r"^\| [^|]+ \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|", page[page.index("## Options") :], re.MULTILINE)
    assert quoted == [f"{seconds:.2f}" for seconds, *_ in options["rows"].values()]


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted({*PARTS} - {"paper"} - ON_A_GPU))
def test_every_part_runs_and_writes_its_results(part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([part, *QUICK, "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / f"{part}.json").read_text())
    printed, page = capsys.readouterr().out, (tmp_path / f"{part}.md").read_text()
    assert {"date", "hardware", "commit", "versions", "threads"} <= written["environment"].keys()
    for table in written["tables"]:
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"].values())
        assert table["title"] in page
        assert table["title"] in printed
    assert (tmp_path / f"{part}.png").stat().st_size > 1000


STEPS = {**masks(2, 32), **variants(2, 32, Options("cpu", 1, 1)), **shortcuts(2, 64)}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_every_subject_can_be_built_and_run(name: str) -> None:
    step = STEPS[name].build(CPU)
    step()
    step()


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["stepp"])
    assert "no part stepp; there are step, paper" in capsys.readouterr().err


class TestCounts:
    """A guard against steps that compute or hold more than they need; seconds would say less, and not everywhere."""

    @pytest.mark.parametrize("masker", MASKERS)
    def test_a_cooperative_step_computes_what_the_method_needs_and_no_more(self, masker: str) -> None:
        step = trained(CPU, kind="cooperative", images=2, side=64, masker=masker)
        assert count(step) / 2 == by_hand(64)[f"cooperative, {masker}"]

    def test_the_other_steps_too(self) -> None:
        assert count(bare(CPU, images=2, side=64)) / 2 == by_hand(64)["bare"]
        assert count(trained(CPU, kind="standard", images=2, side=64)) / 2 == by_hand(64)["standard"]

    def test_the_ratio_is_the_one_that_the_docs_name(self) -> None:
        needed = by_hand(192)
        assert needed["cooperative, targeted channels"] / needed["standard"] == pytest.approx(2.114, abs=5e-4)

    @pytest.mark.slow
    @pytest.mark.parametrize("option", OPTIONS)
    def test_options_save_what_they_are_said_to(self, option: str) -> None:
        assert count_option(CPU, option, images=2, side=64) == by_hand(64)[option]
        assert by_hand(64)[option] < by_hand(64)["cooperative, targeted channels"]

    def test_a_cooperative_step_is_expected_to_draw_each_mask_as_often(self) -> None:
        needed = by_hand(64)
        mean = sum(needed[f"cooperative, {name}"] for name in MASKERS) / len(MASKERS)
        assert expected("cooperative", 64) == pytest.approx(mean)
        assert expected("standard", 64) == needed["standard"]

    def test_checkpointing_keeps_less_in_the_part_that_is_checkpointed(self) -> None:
        model, images, labels = cooperative_model(CPU, FTN(num_classes=4, width=4, depth=2), 2, (64, 64))
        plain = kept(model, images, labels)
        assert min(plain.values()) > 0
        model.checkpointed = ("shape_prior.encoder.blocks.0", "shape_prior.decoder.blocks.0")
        checkpointed = kept(model, images, labels)
        assert checkpointed["shape prior"] < 0.8 * plain["shape prior"]
        assert {**checkpointed, "shape prior": 0} == {**plain, "shape prior": 0}

    def test_memory_is_that_of_the_trunk_and_one_shape_prior(self) -> None:
        """Encoder, segmentation decoder and shape prior are alike in size: each holds half of what a bare step does."""
        size = Size(images=2, side=192)
        most, *_ = follow(bare(CPU, **size), CPU)
        standard, _, asked = follow(trained(CPU, kind="standard", **size), CPU)
        cooperative, _, asked_more = follow(trained(CPU, kind="cooperative", **size), CPU)
        assert standard < 2.0 * most
        assert cooperative < 2.1 * most
        assert asked_more < 1.6 * asked


class TestMeasuring:
    @pytest.mark.slow
    def test_subjects_take_turns_in_processes_of_their_own(self) -> None:
        size = Size(images=2, side=32)
        subjects = {"a": Subject(partial(bare, **size)), "b": Subject(partial(bare, **size), kept=0)}
        measured = take_turns(subjects, device="cpu", threads=1, repeats=3)
        assert [*measured] == ["a", "b"]
        for one in measured.values():
            assert len(one.seconds) == 3
            assert one.median > 0
            assert 1e6 < one.peak < 1e9

    def test_what_goes_wrong_in_a_subject_is_raised(self) -> None:
        with pytest.raises(ModuleNotFoundError, match="medseg"):
            take_turns(
                {"a": Subject(partial(authors, path="nowhere", kind="standard", images=2, side=32))},
                device="cpu",
                threads=1,
                repeats=1,
            )

    @pytest.mark.parametrize("most", [0, 1, 7, 100, 1000, 2**14])
    def test_the_largest_that_fits_is_found_to_within_a_sixteenth(self, most: int) -> None:
        asked = []

        def fits_in(number: int) -> bool:
            asked.append(number)
            return number <= most

        found = largest(fits_in)
        assert most - max(1, most // 16) < found <= most
        assert len(asked) < 25

    def test_a_step_fits_unless_memory_runs_out(self) -> None:
        def build(device: torch.device) -> Step:
            def step() -> None:
                taken.append(1)
                if len(taken) == 2:  # the optimizer has made its moments by then
                    raise torch.cuda.OutOfMemoryError("out of memory")

            return step

        taken = []
        assert not fits(build, CPU)
        taken = [1, 1]
        assert fits(build, CPU)
        with pytest.raises(ZeroDivisionError):
            fits(lambda device: lambda: 1 / 0, CPU)

    @pytest.mark.slow
    def test_rates_are_shares_of_what_a_matrix_product_reaches(self) -> None:
        options = Options("cpu", 1, 1, quick=True)
        peaks = matmuls(options)
        assert min(peaks.values()) > 0
        subjects = {"bare": steps(2, 32, options)["bare"], "unknown": Subject(partial(bare, images=2, side=32))}
        table = _table("t", subjects, options=options, peaks={torch.float32: 1e9})
        seconds, *_, rate, share = table.rows["bare"]
        assert rate * seconds == pytest.approx(2 * by_hand(32)["bare"] / 1e9)
        assert share == pytest.approx(rate)
        assert table.rows["unknown"][-2:] == (None, None)

    def test_a_gpus_variants_that_do_not_run_are_named_with_their_error(self) -> None:
        options = Options("cpu", 1, 1, quick=True)
        variant = Subject(partial(authors, path="nowhere", kind="standard", images=2, side=32))
        table = _table("t", {"compiled": variant}, options=options, peaks={torch.float32: 1.0})
        assert table.rows == {"compiled: ModuleNotFoundError": (None,) * len(table.columns)}

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler's own look
    def test_compiled_networks_train_as_they_do_otherwise(self) -> None:
        outcomes = []
        for compiled in (False, True):
            torch.manual_seed(0)
            model, images, labels = cooperative_model(CPU, FTN(num_classes=4, width=2, depth=2), 2, (32, 32))
            if compiled:
                compile_parts(model, backend="aot_eager")
            generator = torch.Generator().manual_seed(0)
            outcomes.append([cooperative_backward(model, images, labels, generator=generator).loss for _ in range(3)])
        torch.testing.assert_close(*outcomes)

    def test_a_gpu_has_more_variants(self) -> None:
        more = {*variants(2, 32, Options("cuda", 1, 1))} - {*variants(2, 32, Options("cpu", 1, 1))}
        assert more == {"compiled", "compiled, bfloat16", "compiled, CUDA graphs", "bare", "bare, CUDA graph"}

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_bare_step_can_be_recorded_and_launched_as_a_whole(self) -> None:
        step = bare(torch.device("cuda"), images=2, side=32, recorded=True)
        step()
        torch.cuda.synchronize()

    def test_the_spread_is_half_the_range_of_the_middle_half(self) -> None:
        assert Measured([1.0, 2.0, 3.0, 4.0, 100.0], peak=0).spread == pytest.approx((4 - 2) / 2 / 3)


def test_what_is_not_as_it_has_to_be_is_said_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    report = Report([Table("t", ("a",), {"x": (1.0,)})], drawn="a", failed="it waited")
    monkeypatch.setattr("benchmarks.flops.run", lambda options: report)
    assert main(["flops", *QUICK, "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "flops: it waited\n"
    assert (tmp_path / "flops.md").exists()


def test_results_lie_where_the_card_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place("cpu") == "cpu"
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA GeForce RTX 3090 (24 GB)")
    assert place("cuda") == "nvidia-geforce-rtx-3090-24-gb"


def test_missing_values_are_blank_in_a_table_and_not_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table = Table("t", ("a", "b"), {"x": (1.0, None), "y": (2.0, 0.5)}, {"b": "{:.0%}"})
    assert table.markdown().splitlines()[2:] == ["| x | 1.00 |  |", "| y | 2.00 | 50% |"]
    write(Report([table], drawn="b"), "name", Options("cpu", 1, 1), tmp_path)
    assert json.loads((tmp_path / "name.json").read_text())["tables"][0]["rows"]["x"] == [1.0, None]


STAND_IN = """
    import torch
    from torch import nn


    class AdvancedTripletReconSegmentationModel(nn.Module):
        def __init__(self, network_type, image_ch, num_classes, use_gpu):
            super().__init__()
            self.net = nn.Conv2d(image_ch, num_classes, 1)
            self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1)
            self.calls = []

        def reset_all_optimizers(self):
            self.optimizer.zero_grad()

        def optimize_all_params(self):
            self.optimizer.step()

        def standard_training(self, clean_image_l, label_l, perturbed_image, separate_training):
            self.calls.append("standard")
            return [nn.functional.cross_entropy(self.net(perturbed_image), label_l)] * 4

        def hard_example_generation(self, clean_image_l, label_l):
            self.calls.append("generation")
            return clean_image_l, self.net(clean_image_l).detach()

        def hard_example_training(
            self, perturbed_image, perturbed_seg, clean_image_l, label_l, separate_training, use_gpu
        ):
            self.calls.append("hard")
            return self.standard_training(clean_image_l, label_l, perturbed_image, separate_training)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A stand-in for a checkout of the authors' code, with its interface."""
    models = tmp_path / "checkout" / "medseg" / "models"
    models.mkdir(parents=True)
    (models / "advanced_triplet_recon_segmentation_model.py").write_text(textwrap.dedent(STAND_IN))
    return tmp_path / "checkout"


@pytest.mark.slow
def test_the_authors_code_is_timed_beside_ours(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["paper", *QUICK, "--authors", str(checkout), "--output", str(tmp_path / "results")]) == 0
    rows = json.loads((tmp_path / "results" / "paper.json").read_text())["tables"][0]["rows"]
    assert {"bare", "standard", "cooperative", "authors' standard", "authors' cooperative"} <= rows.keys()


@pytest.mark.slow
def test_a_folder_without_it_is_left_out_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nibabel")  # of the cardiac example, whose batches are timed
    pytest.importorskip("matplotlib")
    assert main(["data", *QUICK, "--authors", str(tmp_path), "--output", str(tmp_path / "results")]) == 0
    assert "there is no medseg/ in it, so it is left out" in capsys.readouterr().err
