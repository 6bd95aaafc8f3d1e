"""Damaged data end in the right frames or in one clear line, whatever the damage; never in more time or memory."""

from __future__ import annotations

import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import pytest

import acdc_cooperative
from cardiac.run.presets import Preset
from cardiac.run.study import Study
from study.methods.network import Network
from study.run import experiment
from tests.support.damage import NO_FILES, Damaged, damaged_nifti, damaged_text, in_place_of, seed_of_the_day
from tests.support.releases import TABLE, Frames, plain_acdc, plain_mnms, write_acdc, write_mnms

SIZE = 32
SECONDS, BYTES = 20, 2 << 30
TINY = [
    *("--image-size", str(SIZE), "--no-halve", "--depth", "2", "--width", "2", "--device", "cpu"),
    *("--batch-size", "4", "--iterations", "4", "--methods", "standard", "--no-cache"),
]


class Ended(NamedTuple):
    """How the command ended: its exit code, what it wrote to stderr, and the frames that it read."""

    code: int
    error: str
    frames: Frames


class Release:
    """A copy of both data sets; each file can be damaged and made whole again."""

    def __init__(self, root: Path) -> None:
        self.acdc, self.mnms = write_acdc(root / "acdc"), write_mnms(root / "mnms")
        self.volumes = sorted(root.rglob("*.nii.gz"))
        self.infos = sorted(root.rglob("Info.cfg"))
        self.table = self.mnms / TABLE

    def plain(self) -> Frames:
        return {**plain_acdc(self.acdc, SIZE), **plain_mnms(self.mnms, SIZE)}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path / "data")


@pytest.fixture
def command(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], Ended]:
    """The example's command up to its first training: all frames read at one size, the network built once."""
    studies: list[Study] = []
    monkeypatch.setattr(Network, "build", once(Network.build))
    monkeypatch.setattr(Preset, "padded_size", SIZE)
    monkeypatch.setattr(experiment, "train_and_test", lambda method, draw, study, *rest: studies.append(study))
    monkeypatch.setattr(acdc_cooperative, "conclude", lambda *rest: None)
    flags = ["--acdc", str(release.acdc), "--mnms", str(release.mnms), *TINY, "--output", str(tmp_path / "run")]

    def run() -> Ended:
        studies.clear()
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        code = acdc_cooperative.main(flags)
        sets = [frames for study in studies for frames in (*study._acdc.values(), *study._others.values())]
        frames = {(one.patient, one.phase): (one.image, one.labels) for some in sets for one in some}
        return Ended(code, capsys.readouterr().err, frames)

    return run


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Call a function a single time, and return what it gave ever after."""
    made: list[Any] = []
    return lambda *args: made[0] if made else made.append(function(*args)) or made[0]


@contextmanager
def within_limits(seconds: float = SECONDS, size: int = BYTES) -> Iterator[None]:
    """Fail where something takes too long, even if it waits for ever, or too much memory at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def equal(some: Frames, others: Frames) -> bool:
    return some.keys() == others.keys() and all(
        np.array_equal(mine, theirs) for key in some for mine, theirs in zip(some[key], others[key], strict=True)
    )


def is_right(ended: Ended, whole: Frames, plain: Callable[[], Frames]) -> bool:
    """Whether a command ended in one line, or in the frames of the whole files or of what the damaged ones now say."""
    if ended.code:
        error = ended.error
        return ended.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and "Traceback" not in error
    if equal(ended.frames, whole):
        return True
    return equal(ended.frames, plain())


def test_whole_files_are_read_as_nibabel_reads_them(release: Release, command: Callable[[], Ended]) -> None:
    ended = command()
    assert ended.code == 0
    assert len(ended.frames) == 10
    assert equal(ended.frames, release.plain())


def test_what_is_wrong_is_seen() -> None:
    frames: Frames = {("001", "ED"): (np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8))}
    other: Frames = {("001", "ED"): (np.ones((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8))}
    assert is_right(Ended(0, "", frames), frames, lambda: other)
    assert is_right(Ended(2, "error: a file is broken.\n", {}), frames, lambda: frames)
    for wrong in (
        Ended(0, "", other),
        Ended(0, "", {}),
        Ended(1, "error: a file is broken.\n", {}),
        Ended(2, "error: a file\nis broken.\n", {}),
        Ended(2, "Traceback\n", {}),
    ):
        assert not is_right(wrong, frames, lambda: frames)
    with pytest.raises(TimeoutError, match="still busy"), within_limits(seconds=0.1):
        time.sleep(5)
    with pytest.raises(AssertionError), within_limits(size=1 << 20):
        np.ones(1 << 18)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "times"), [("volumes", 420), ("infos", 120), ("table", 120)])
def test_damaged_files_end_in_the_right_frames_or_in_one_line(
    release: Release, command: Callable[[], Ended], kind: str, times: int
) -> None:
    seed = seed_of_the_day()
    random = Random(f"{seed} {kind}")
    damage = damaged_nifti if kind == "volumes" else damaged_text
    files = {"volumes": release.volumes, "infos": release.infos, "table": [release.table]}[kind]
    whole, read = release.plain(), 0
    for number in range(times):
        file = random.choice(files)
        content = file.read_bytes()
        damaged: Damaged = damage(content, random)
        file.write_bytes(damaged.content)
        told = f"seed {seed}, {kind} {number}, {file.name}: {damaged.how}"
        try:
            with within_limits():
                ended = command()
        except BaseException as error:
            raise AssertionError(told) from error
        assert is_right(ended, whole, release.plain), f"{told}: {ended.error or 'other frames'}"
        assert ended.code == 0 or file.name.split(".")[0] in ended.error, f"{told}: {ended.error}"
        read += ended.code == 0
        file.write_bytes(content)
    assert 0 < read < times  # some damages do no harm, and some do


@pytest.mark.parametrize("what", NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(
    release: Release, command: Callable[[], Ended], what: str
) -> None:
    for file in (release.volumes[0], release.volumes[-1], release.infos[1], release.table):
        content = file.read_bytes()
        in_place_of(file, what)
        with within_limits():
            ended = command()
        assert is_right(ended, {}, dict), ended
        assert ended.code == 2
        assert file.name.split(".")[0] in ended.error
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        file.write_bytes(content)
    assert command().code == 0
