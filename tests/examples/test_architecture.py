"""The rooms of the study: imports run one way, and the library is used by its public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import acdc_cooperative
import pytest

import latentaug
from latentaug import plot

EXAMPLES = Path(acdc_cooperative.__file__).parent
STUDY = EXAMPLES / "cardiac"

# Each room, and whom it may import from.
ROOMS = {
    "data": (),
    "methods": ("data",),
    "run": ("methods", "data"),
    "report": ("run", "methods", "data"),
}
FILES = sorted(path for path in STUDY.rglob("*.py") if path != STUDY / "__init__.py")
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
DOORS = ("acdc_cooperative", "compare_runs", "rank_recipes")
"""Scripts that open the study; all others stand alone."""

NAMES = {"latentaug": {*latentaug.__all__, "__version__"}, "latentaug.plot": {*vars(plot)}}
MISSING: set[tuple[str, str]] = set()
"""What the study needs, and the library's root lacks."""


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every module that a file imports from, with the name that it takes; the module alone has an empty name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert not node.level, "rooms are named in full"
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def strangers(path: Path, study: Path = STUDY) -> set[str]:
    """Return the rooms that a file imports from, though it must not."""
    room, *_ = path.relative_to(study).parts
    used = {f"{module}.{name}".split(".")[1] for module, name in imports(path) if module.split(".")[0] == "cardiac"}
    return used - {room, *ROOMS[room]}


def private(path: Path) -> set[tuple[str, str]]:
    """Return what a file takes from the library that is not public."""
    taken = {(module, name) for module, name in imports(path) if module.split(".")[0] == "latentaug"}
    return {(module, name) for module, name in taken if name and name not in NAMES.get(module, ())}


def test_every_room_exists_and_every_folder_is_one() -> None:
    assert {path.name for path in STUDY.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*ROOMS}
    assert {path.parent for path in FILES} == {STUDY / room for room in ROOMS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(STUDY).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    assert not strangers(path)


def test_the_library_is_used_by_its_public_names() -> None:
    assert set().union(*map(private, [*FILES, *SCRIPTS])) == MISSING


def test_readers_are_found_at_the_door_of_their_room() -> None:
    from cardiac.data import DataError, Frame, halve, read_acdc, read_mnms, read_preprocessed

    assert issubclass(DataError, Exception)
    assert {one.__module__ for one in (DataError, Frame, halve, read_acdc, read_mnms, read_preprocessed)} == {
        "cardiac.data.readers"
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_stands_alone_unless_it_opens_the_study(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 80
    used = {module.split(".")[0] for module, _ in imports(path)}
    assert ("cardiac" in used) == (path.stem in DOORS)
    assert not used & {"tests", "benchmarks", *(script.stem for script in SCRIPTS)}


def test_the_rules_see_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "data" / "readers.py"
    wrong.parent.mkdir()
    wrong.write_text(
        "import cardiac.methods.network\nfrom cardiac import run\nfrom cardiac.report.page import PAGE\n"
        "from latentaug.tap.capture import Capture\nfrom latentaug import CooperativeModel\n"
    )
    assert strangers(wrong, tmp_path) == {"methods", "run", "report"}
    assert private(wrong) == {("latentaug.tap.capture", "Capture")}
