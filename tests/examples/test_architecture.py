"""The rooms of the studies: imports run one way, and the library is used by its public names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import acdc_cooperative
import latentaug
from latentaug import plot, robustness

EXAMPLES = Path(acdc_cooperative.__file__).parent

# Each room of a package, and whom it may import from. What is of one kind of images stands on what all have in common.
ROOMS = {"data": (), "methods": ("data",), "run": ("methods", "data"), "report": ("run", "methods", "data")}
PACKAGES = {"study": {*ROOMS}, "cardiac": {"data", "run", "report"}, "nuclei": set[str]()}
FOR_ALL = {"study.domains"}
FILES = sorted(path for name in PACKAGES for path in (EXAMPLES / name).rglob("*.py") if path.name != "__init__.py")
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
DOORS = ("acdc_cooperative", "compare_runs", "draw_gains", "nuclei_cooperative", "rank_recipes")
"""Scripts that open a study; all others stand alone."""

NAMES = {
    "latentaug": {*latentaug.__all__, "__version__"},
    "latentaug.plot": {*vars(plot)},
    "latentaug.robustness": {*robustness.__all__},
}
MISSING: set[tuple[str, str]] = set()
"""What the studies need, and the library's root lacks."""


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield every module that a file imports from, with the name that it takes; the module alone has an empty name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert not node.level, "rooms are named in full"
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def strangers(path: Path, examples: Path = EXAMPLES) -> set[str]:
    """Return the rooms, as "study.run", that a file imports from, though it must not."""
    package, room, *_ = path.relative_to(examples).with_suffix("").parts
    named = [f"{module}.{name}".split(".") for module, name in imports(path)]
    used = {f"{parts[0]}.{parts[1]}" for parts in named if parts[0] in PACKAGES}
    rooms = {room, *ROOMS[room]} if room in ROOMS else {*ROOMS}
    allowed = {f"{name}.{one}" for name in {package, "study"} for one in rooms} | FOR_ALL
    own = {f"nuclei.{other.stem}" for other in (EXAMPLES / "nuclei").glob("*.py")} if package == "nuclei" else set()
    return used - allowed - own


def private(path: Path) -> set[tuple[str, str]]:
    """Return what a file takes from the library that is not public."""
    taken = {(module, name) for module, name in imports(path) if module.split(".")[0] == "latentaug"}
    return {(module, name) for module, name in taken if name and name not in NAMES.get(module, ())}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_exists_and_every_folder_is_one(package: str) -> None:
    folders = {path.name for path in (EXAMPLES / package).iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == PACKAGES[package]
    outside = {path.name for path in (EXAMPLES / package).glob("*.py")} - {"__init__.py"}
    assert package == "nuclei" or outside == ({"domains.py"} if package == "study" else set())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(EXAMPLES).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    assert not strangers(path)


def test_the_library_is_used_by_its_public_names() -> None:
    assert set().union(*map(private, [*FILES, *SCRIPTS])) == MISSING


def test_readers_are_found_at_the_door_of_their_room() -> None:
    from cardiac.data import DataError, Frame, halve, read_acdc, read_mnms, read_preprocessed

    assert issubclass(DataError, Exception)
    assert {one.__module__ for one in (Frame, halve, read_acdc, read_mnms, read_preprocessed)} == {
        "cardiac.data.readers"
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_and_stands_alone_unless_it_opens_a_study(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 80
    used = {module.split(".")[0] for module, _ in imports(path)}
    assert bool(used & {*PACKAGES}) == (path.stem in DOORS)
    assert not used & {"tests", "benchmarks", *(script.stem for script in SCRIPTS)}


def test_the_rules_see_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "cardiac" / "data" / "readers.py"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(
        "import study.methods.network\nfrom cardiac import run\nfrom cardiac.report.page import PAGE\n"
        "from study.data import frame\nfrom nuclei.images import Frame\n"
        "from latentaug.tap.capture import Capture\nfrom latentaug import CooperativeModel\n"
    )
    assert strangers(wrong, tmp_path) == {"study.methods", "cardiac.run", "cardiac.report", "nuclei.images"}
    assert private(wrong) == {("latentaug.tap.capture", "Capture")}
    general = tmp_path / "study" / "run" / "cost.py"
    general.parent.mkdir(parents=True)
    general.write_text("from cardiac.data.readers import Frame\nfrom study.report.page import PAGE\n")
    assert strangers(general, tmp_path) == {"cardiac.data", "study.report"}
