"""A flipped bit anywhere in a file is seen before anything is read from it."""

from __future__ import annotations

import io
import logging
import random
from pathlib import Path

import pytest
import torch

from latentaug.training.checkpoint import save_checkpoint
from latentaug.training.digest import check_seal, seal


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint({"weights": torch.rand(100), "history": [{"loss": 1.5}]}, path)
    return path


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(content))


def check(path: Path) -> None:
    with path.open("rb") as file:
        check_seal(file, path)


def test_a_whole_file_passes_and_is_read_by_whatever_reads_checkpoints(checkpoint: Path) -> None:
    check(checkpoint)
    assert torch.load(checkpoint, weights_only=True)["history"] == [{"loss": 1.5}]
    with checkpoint.open("rb") as file:
        check_seal(file, checkpoint)
        assert file.tell() == 0


def test_every_byte_counts(checkpoint: Path) -> None:
    content, generator = checkpoint.read_bytes(), random.Random(0)
    for position in range(0, len(content), 3):
        flipped(checkpoint, 8 * position + generator.randrange(8))
        with pytest.raises(ValueError, match=r"last\.pt can't be read as a checkpoint.* damaged"):
            check(checkpoint)
        checkpoint.write_bytes(content)


@pytest.mark.parametrize("left", [0, 1, 21, 22, 100, 500, -1, -60, -81, -103])
def test_a_file_that_is_cut_off_is_seen(checkpoint: Path, left: int) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"last\.pt can't be read as a checkpoint"):
        check(checkpoint)


def test_a_file_with_something_behind_it_is_seen(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"last\.pt can't be read as a checkpoint"):
        check(checkpoint)


def test_a_file_without_a_digest_is_checked_as_the_archive_that_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, weights = tmp_path / "older.pt", torch.rand(100)
    torch.save({"weights": weights}, path)
    with caplog.at_level(logging.INFO):
        check(path)
    assert "has no digest" in caplog.text
    flipped(path, 8 * path.read_bytes().find(weights.numpy().tobytes()) + 70)
    with pytest.raises(ValueError, match=r"older\.pt can't be read as a checkpoint: it is damaged, in .*data/0"):
        check(path)


def test_what_is_no_archive_is_not_sealed() -> None:
    with pytest.raises(RuntimeError, match="something else than a zip archive"):
        seal(io.BytesIO(b"0" * 100))
