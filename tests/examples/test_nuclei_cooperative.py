"""The nuclei example's script from end to end, on images so small that a run takes seconds."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import nuclei_cooperative
from nuclei import generated
from nuclei.images import DOMAINS, INVERTED, domain_of, read_images
from nuclei.presets import Preset
from nuclei.study import SEVERITIES, SHIFTS, Study, shifted
from study.data.batches import Batch, TrainingBatches
from study.data.frame import DataError
from study.run import cost, training
from study.run.cases import read_cases
from study.run.scores import METRICS, VALIDATION, read_scores

TINY = [
    *("--model", "FTN", "--depth", "2", "--width", "2", "--image-size", "32", "--train-size", "4"),
    *("--iterations", "4", "--methods", "plain", "--device", "cpu"),
]


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Few images, and a single step to measure what a step costs."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("ROUNDS", "STEPS", "WARM_UP"):
            patched.setattr(cost, name, 1)
        patched.setattr(generated, "IN_DOMAIN", 10)
        patched.setattr(generated, "ELSEWHERE", 2)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one uninterrupted run."""
    output = tmp_path_factory.mktemp("whole") / "run"
    assert nuclei_cooperative.main([*TINY, "--output", str(output)]) == 0
    return output


def test_a_run_is_tested_with_the_statistics_that_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def noting(network: nn.Module, batches: Iterable[Tensor], *rest: Any) -> None:
        seen.append(torch.cat([*batches]))

    monkeypatch.setattr(training, "renew_statistics", noting)
    for flags in (["--augment", "none"], ["--augment", "gin"], ["--statistics", "kept"]):
        assert nuclei_cooperative.main([*TINY, *flags, "--output", str(tmp_path / flags[1])]) == 0
    as_they_are, with_gin = seen
    assert len(as_they_are) == training.BATCHES * 4
    assert torch.equal(as_they_are, with_gin)


def test_a_run_leaves_scores_of_every_domain_and_a_summary(whole: Path) -> None:
    scores = read_scores(whole)
    columns = [*dict.fromkeys(score.column for score in scores)]
    assert columns == [name if name not in INVERTED else f"inverted/{name}" for name in DOMAINS]
    assert {score.metric for score in scores} >= {*METRICS} - {"hd95", "assd"}  # nothing may be found in four steps
    assert len([score for score in scores if score.metric == "dice"]) == 4 + 5 * 2
    assert {score.structure for score in scores} == {"nuclei"}
    for score in (score for score in scores if score.metric == "failed"):
        (dice,) = (s.value for s in scores if s[:7] == score[:7] and s.metric == "dice")
        assert score.value == float(dice < 0.1)
    table = json.loads((whole / "table.json").read_text())
    assert table["columns"] == [*columns[:4], "average", *sorted(columns[4:])]
    assert (whole / "summary.md").read_text().startswith("| method | draws | cost in plain steps | fluo256 | fluo360 |")
    assert "## HD95 in pixels" in (whole / "table.md").read_text() or "hd95" not in {s.metric for s in scores}
    assert "patient" not in (whole / "table.md").read_text()


def test_a_run_leaves_a_page_and_images_to_look_at(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (whole / "report.html").read_bytes()
    assert b"Not kept" not in page
    assert all(f'<section id="{name}">'.encode() in page for name in ("summary", "cases", "moments"))
    assert {case.column for case in read_cases(whole / "plain" / "draw-0" / "cases.npz")} == {
        score.column for score in read_scores(whole)
    }
    (whole / "report.html").unlink()
    assert nuclei_cooperative.main([*TINY, "--output", str(whole)]) == 0
    assert (whole / "report.html").read_bytes() == page
    assert f"The run as one page: {whole / 'report.html'}" in capsys.readouterr().out


def test_methods_are_chosen_by_shifts_that_no_test_has(whole: Path) -> None:
    scores = read_scores(whole / "plain" / "draw-0", VALIDATION)
    assert {score.column for score in scores} == {"fluo256", *(f"{kind} {at}" for kind in SHIFTS for at in SEVERITIES)}
    assert not {score.patient for score in scores} & {score.patient for score in read_scores(whole)}


def test_an_interrupted_run_goes_on_to_the_same_scores(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: TrainingBatches, asked: int) -> Batch:
        if asked == 2:
            raise KeyboardInterrupt
        return batch(self, asked)

    batch = TrainingBatches.batch
    with monkeypatch.context() as patched:
        patched.setattr(TrainingBatches, "batch", interrupt)
        assert nuclei_cooperative.main([*TINY, "--output", str(tmp_path / "run")]) == 130
    assert nuclei_cooperative.main([*TINY, "--output", str(tmp_path / "run"), "--resume"]) == 0
    assert "going on from iteration" in capsys.readouterr().out
    assert (tmp_path / "run" / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on_to_the_same_scores(whole: Path, tmp_path: Path) -> None:
    program = """
import os, signal, sys
import nuclei_cooperative
from nuclei import generated
from study.data.batches import TrainingBatches
from study.run import callbacks, cost

def kill(self, number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(self, number)

cost.ROUNDS = cost.STEPS = cost.WARM_UP = 1
generated.IN_DOMAIN, generated.ELSEWHERE = 10, 2
callbacks.SECONDS, batch, TrainingBatches.batch = 0, TrainingBatches.batch, kill
nuclei_cooperative.main(sys.argv[1:])
"""
    arguments = [*TINY, "--output", str(tmp_path / "run")]
    examples, threads = str(Path(nuclei_cooperative.__file__).parent), str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([examples, *sys.path]), "OMP_NUM_THREADS": threads}
    process = subprocess.run([sys.executable, "-c", program, *arguments], env=environment)
    assert process.returncode == -signal.SIGKILL
    assert nuclei_cooperative.main([*arguments, "--resume"]) == 0
    assert (tmp_path / "run" / "scores.csv.xz").read_bytes() == (whole / "scores.csv.xz").read_bytes()


def test_fine_tuning_starts_from_a_training_before(whole: Path, tmp_path: Path) -> None:
    start = whole / "plain" / "draw-{draw}" / "last.pt"
    flags = [*TINY, "--iterations", "1", "--learning-rate", "1e-30", "--start", str(start)]
    assert nuclei_cooperative.main([*flags, "--output", str(tmp_path / "run")]) == 0
    both = [torch.load(run / "plain" / "draw-0" / "last.pt")["model"] for run in (whole, tmp_path / "run")]
    weights = [name for name in both[0] if name.startswith("model.") and name.endswith("weight")]
    assert weights
    assert all(torch.equal(both[0][name], both[1][name]) for name in weights)
    assert "start" in json.loads((tmp_path / "run" / "configuration.json").read_text())


def test_both_layouts_hold_the_same_images(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sizes = {"fluo256": (256, 256), "fluo360": (360, 360), "fluo520": (520, 696), "fluo-other": (100, 90)}
    for name in DOMAINS:
        height, width = sizes.get(name, (80, 70))
        level = 230 if name in INVERTED else 5
        image = (level + random.integers(0, 9, (height, width, 1))).repeat(3, 2).astype(np.uint8)
        nuclei = [np.zeros((height, width), np.uint8) for _ in range(2)]
        y, x = height // 2, width // 2
        nuclei[0][y : y + 10, x : x + 10] = nuclei[1][y + 10 : y + 20, x + 2 : x + 12] = 255
        image[y : y + 20, x : x + 12] = 120
        if name == "stained":
            image[..., 1] -= 60
        one, other = tmp_path / "sorted" / name, tmp_path / "stage1_train" / f"{name}-a"
        for folder in (one, other / "images", other / "masks"):
            folder.mkdir(parents=True)
        Image.fromarray(image if name == "stained" else image[..., 0]).save(one / f"{name}-a_img.png")
        Image.fromarray(nuclei[0] // 255 + nuclei[1] // 255 * 2).save(one / f"{name}-a_seg.png")
        opaque = np.full((height, width, 1), 255, np.uint8)
        Image.fromarray(np.concatenate([image, opaque], 2)).save(other / "images" / f"{name}-a.png")
        for number, nucleus in enumerate(nuclei):
            Image.fromarray(nucleus).save(other / "masks" / f"{number}.png")
    ours, theirs = read_images(tmp_path / "sorted"), read_images(tmp_path)
    assert [*ours] == [*theirs] == [*DOMAINS]
    for name in DOMAINS:
        ((one,), (other,)) = ours[name], theirs[name]
        assert one.patient == other.patient == f"{name}-a"
        np.testing.assert_allclose(one.image, other.image, atol=1e-6)
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.labels.shape[1:] == tuple(min(n, 512) for n in sizes.get(name, (80, 70)))
        assert one.labels.sum() == 200
        assert one.labels.max() == 1


def test_generated_images_look_like_their_domains() -> None:
    images = generated.generate_images()
    assert [*images] == [*DOMAINS]
    for name, frames in images.items():
        inside = np.mean(
            [frame.image[frame.labels > 0].mean() - frame.image[frame.labels == 0].mean() for frame in frames]
        )
        assert (inside < 0) == (name in INVERTED)
    again = generated.generate_images()
    assert all(
        np.array_equal(a.image, b.image) for name in DOMAINS for a, b in zip(images[name], again[name], strict=True)
    )


def test_nobody_is_in_two_sets_and_draws_of_fewer_are_parts_of_those_of_more() -> None:
    images = generated.generate_images()
    few, many = (Study(images, Preset(train_size=size, image_size=64), "") for size in (2, 4))
    for draw in range(3):
        names = [{one.patient for one in study.training(draw)} for study in (few, many)]
        assert names[0] < names[1]
        tested, choosing = (
            {one.patient for one in sets["fluo256"]} for sets in (many.tests(draw), many.to_choose_by(draw))
        )
        assert not names[1] & tested
        assert not names[1] & choosing
        assert not tested & choosing
    assert len({frozenset(one.patient for one in few.training(draw)) for draw in range(3)}) > 1
    frame = images["fluo256"][0]
    assert np.array_equal(shifted(frame, "noise", 3).image, shifted(frame, "noise", 3).image)
    assert not np.array_equal(shifted(frame, "noise", 3).image, shifted(frame, "noise", 5).image)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--data", "absent"], "absent: no such folder"),
        (["--data", "."], "neither fluo256/*_img.png nor */images/*.png"),
        (["--train-size", "100"], "--train-size 100: of 10 images"),
        (["--image-size", "40"], "--image-size must be a multiple of 32"),
        (["--augment", "magic"], "--augment must be one of"),
        (["--pretrained", "absent.pt"], "--pretrained"),
        (["--start", "absent-{draw}.pt"], "absent-0.pt: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: list[str], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nuclei_cooperative.main([*TINY, *given, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: ")
    assert named in error


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "fluo256").mkdir()
    (tmp_path / "fluo256" / "a_img.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a_img.png: cannot be read"):
        read_images(tmp_path)


GREY = np.full((256, 256), 40, np.uint8)
NUCLEUS = np.zeros((256, 256), np.uint8)
NUCLEUS[10:40, 10:40] = 255
OPAQUE = np.full_like(NUCLEUS, 255)


def released(root: Path, image: Image.Image, *masks: Image.Image, name: str = "an image") -> Path:
    for folder in ("images", "masks"):
        (root / name / folder).mkdir(parents=True)
    image.save(root / name / "images" / f"{name}.png")
    for number, mask in enumerate(masks):
        mask.save(root / name / "masks" / f"mask {number}.png")
    return root / name


@pytest.mark.parametrize("mode", ["16 bits", "1 bit", "L", "LA", "P", "RGB", "RGBA", "upper case"])
def test_images_and_masks_of_all_kinds_of_png_are_the_same(tmp_path: Path, mode: str) -> None:
    def made(pixels: Any) -> Image.Image:
        if mode == "16 bits":
            return Image.fromarray(pixels.astype(np.uint16) * 257)
        if mode == "1 bit":
            return Image.fromarray(pixels > 128)
        return Image.fromarray(pixels).convert("L" if mode == "upper case" else mode)

    folder = released(tmp_path, made(GREY), made(NUCLEUS), made(NUCLEUS[::-1].copy()))
    if mode == "upper case":
        for path in [*folder.rglob("*.png")]:
            path.rename(path.with_suffix(".PNG"))
    (folder / "masks" / "._mask 0.png").write_bytes(b"of another system")
    ((domain, (frame,)),) = read_images(tmp_path).items()
    assert domain == "fluo256"
    np.testing.assert_array_equal(frame.labels[0], (NUCLEUS + NUCLEUS[::-1]) > 0)


@pytest.mark.parametrize("kind", ["size", "bits", "jpeg", "pipe", "folder", "large", "images"])
def test_what_is_no_mask_of_an_image_is_named(tmp_path: Path, kind: str) -> None:
    other = NUCLEUS[:200] if kind == "size" else NUCLEUS
    folder = released(tmp_path, Image.fromarray(GREY), Image.fromarray(NUCLEUS), Image.fromarray(other))
    path = folder / "masks" / "mask 1.png"
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == "jpeg":
        Image.fromarray(other).save(path, format="JPEG")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        content[16:24] = struct.pack(">II", 40_000, 40_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        path.write_bytes(content)
    else:
        content[-30] ^= 16 * (kind == "bits")
        path.write_bytes(content)
    if kind == "images":
        Image.fromarray(GREY).save(folder / "images" / "another.png")
    told = "images: 2 images" if kind == "images" else r"mask 1\.png: (cannot be|has \(200)"
    with pytest.raises(DataError, match=told):
        read_images(tmp_path)


def test_domains_are_told_apart_by_colour_brightness_and_size() -> None:
    assert domain_of(np.zeros((520, 696))) == "fluo520"
    assert domain_of(np.zeros((696, 520))) == "fluo-other"
    assert domain_of(np.full((256, 256), 200.0)) == "bright-grey"
    assert domain_of(np.full((256, 256, 3), 200.0)) == "bright-grey"
    assert domain_of(np.full((256, 256, 3), (120.0, 60.0, 150.0))) == "stained"
