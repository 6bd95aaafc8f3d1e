"""The house rule: each module of a room has its tests at the same place, and each file of tests its module."""

from __future__ import annotations

from pathlib import Path

import pytest

import latentaug

PACKAGE, TESTS = Path(latentaug.__file__).parent, Path(__file__).parent
ROOMS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

MOVING = {"integrations"}  # whose tests are held otherwise: there each door is a folder, beside the matrix of models
EXCEPTIONS: set[str] = set()  # as "tap/plan": a module that has no tests at its place, or tests that have no module


def alone(room: str, package: Path = PACKAGE, tests: Path = TESTS) -> set[str]:
    """Name the modules of a room without tests, and its tests without a module."""
    modules = {path.stem for path in (package / room).glob("*.py")} - {"__init__"}
    with_tests = {path.stem.removeprefix("test_") for path in (tests / room).glob("test_*.py")}
    return {f"{room}/{name}" for name in modules ^ with_tests}


@pytest.mark.parametrize("room", sorted(ROOMS - MOVING))
def test_each_module_has_its_tests_and_each_file_of_tests_its_module(room: str) -> None:
    assert alone(room) == {name for name in EXCEPTIONS if name.startswith(f"{room}/")}


def test_every_exception_is_of_a_room_that_is_looked_at() -> None:
    assert MOVING <= ROOMS
    assert {name.split("/")[0] for name in EXCEPTIONS} <= ROOMS - MOVING


def test_the_rule_sees_a_module_without_tests_and_tests_without_a_module(tmp_path: Path) -> None:
    package, tests = tmp_path / "package", tmp_path / "tests"
    for folder, names in (
        (package, ("__init__", "plan", "capture")),
        (tests, ("conftest", "test_plan", "test_spread")),
    ):
        (folder / "tap").mkdir(parents=True)
        for name in names:
            (folder / "tap" / f"{name}.py").touch()
    assert alone("tap", package, tests) == {"tap/capture", "tap/spread"}
