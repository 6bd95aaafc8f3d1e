"""`benchmarks/gpu.sh`: each part by itself, and a summary that says all, whatever fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.training import Epoch, length, read, whole

ROOT = Path(__file__).parents[2]
STAND_IN = """#!{python}
import sys

call = " ".join(sys.argv[1:])
if call == "-":
    print("torch 0.0, a stand-in")
elif "is_available" in call:
    print({device!r})
elif "place" in call:
    print("a-card")
elif call.startswith("-m benchmarks"):
    print("ran", call)
    if " training " in call:
        print("the phantom is broken")
        sys.exit(7)
    folder = sys.argv[sys.argv.index("--output") + 1]
    with open(folder + "/" + sys.argv[3] + ".md", "w") as file:
        file.write("the table of " + sys.argv[3])
else:
    print("ran", call)
"""


def gpu(tmp_path: Path, *arguments: str, device: str = "cpu") -> tuple[int, str]:
    """Run the script with a stand-in for Python; return its status and what it said."""
    python = tmp_path / "python"
    python.write_text(STAND_IN.format(python=sys.executable, device=device))
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *arguments],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_what_fails_costs_no_other_part_and_is_told(tmp_path: Path) -> None:
    status, said = gpu(tmp_path, "--output", str(tmp_path / "out"), device="cuda")
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert status == 1
    for told in (
        "torch 0.0, a stand-in",
        "| training | **failed with status 7** |",
        "Last lines of training:",
        "the phantom is broken",
        "| step | done |",
        "the table of memory",
        "1 failed",
    ):
        assert told in summary
        assert told in said
    assert "--device cuda" in (tmp_path / "out" / "logs" / "step.log").read_text()


def test_without_a_gpu_it_is_quick(tmp_path: Path) -> None:
    status, said = gpu(tmp_path, "--output", str(tmp_path / "out"))
    assert "no GPU that PyTorch can use" in said
    assert "--quick" in (tmp_path / "out" / "logs" / "memory.log").read_text()
    assert status == 1


def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    status, said = gpu(tmp_path, "--fast")
    assert status == 2
    assert "unknown argument --fast" in said


def test_all_parts_together_end_within_eight_minutes() -> None:
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    limits = [int(limit) for limit in re.findall(r"^(?:part|benchmark) \w+ (\d+) ", text, flags=re.MULTILINE)]
    assert len(limits) == 5
    assert sum(limits) <= int(text.split("\nbudget=")[1].split()[0]) < 480


def test_a_log_tells_how_long_the_whole_training_takes(tmp_path: Path) -> None:
    pytest.importorskip("torchio")  # of the cardiac example, whose presets are read
    (tmp_path / "cooperative").mkdir()
    log = tmp_path / "cooperative" / "log.csv"
    log.write_text("epoch,step,seconds,loss\n1,20,50.0,1.5\n2,40,10.0,1.2\n3,60,12.0,1.1\n4,80,10.0,1.0\n")
    epochs = read(tmp_path)
    assert epochs[1] == Epoch(40, 10.0)
    assert length("paper", 20) == 600 * 20
    assert whole(epochs, "paper") == (80, 0.5, 12_000, pytest.approx(12_000 * 0.5 / 3600))
    assert read(tmp_path / "nowhere") == []
