"""The house rule: imports run one way, and the core imports nothing that is an extra."""

import ast
import sys
from pathlib import Path

import pytest

import latentaug

PACKAGE = Path(latentaug.__file__).parent

# Each room, and whom it may import from. FLOOR are files that every room may stand on.
ROOMS = {
    "tracing": (),
    "discovery": ("tracing",),
    "tap": ("discovery", "tracing"),
    "augment": (),
    "nets": (),
    "cooperative": ("tap", "discovery", "tracing", "augment", "nets"),
    "training": ("cooperative", "tap", "discovery", "tracing", "augment", "nets", "plot"),
    "robustness": ("training", "cooperative", "nets", "augment", "tracing"),
    "integrations": ("training", "cooperative", "tap", "discovery", "tracing", "augment", "nets"),
}
DOORS = {"nnunet/trainers": {"nnunetv2"}, "lightning": {"lightning"}}
"""Files made of a framework's own classes, each by the start of its path in `integrations`, and what it may import."""
FLOOR, BESIDE = ("layout", "saliency", "divergence", "checks", "ranks", "table", "figure"), {"plot": ("nets",)}
CORE = {"torch", "numpy", "typing_extensions"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    return {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level} | {
        alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    }


def imports_at_the_top(path: Path) -> set[str]:
    body = ast.parse(path.read_text()).body
    names = {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}


def room_of(path: Path, package: Path = PACKAGE) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def strangers(path: Path, package: Path = PACKAGE) -> set[str]:
    """Rooms that a file imports from, though it must not."""
    room = room_of(path, package)
    known = {room, *FLOOR, *ROOMS.get(room, ()), *BESIDE.get(room, ())}
    return {name.split(".")[1] for name in imports(path) if name.startswith("latentaug.")} - known


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    assert not strangers(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_extras_are_imported_where_they_are_used(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports_at_the_top(path)} - {"latentaug"}
    inside = path.relative_to(PACKAGE).as_posix()
    loaded = set().union(*(known for door, known in DOORS.items() if inside.startswith(f"integrations/{door}/")))
    assert outside - set(sys.stdlib_module_names) <= CORE | loaded


def test_every_room_exists_and_every_folder_and_file_is_one() -> None:
    assert {room_of(path) for path in FILES} == {*ROOMS, *FLOOR, *BESIDE}
    assert all(called in {*ROOMS, *BESIDE} for known in (*ROOMS.values(), *BESIDE.values()) for called in known)


def test_the_library_knows_no_example() -> None:
    used = {name.split(".")[0] for path in FILES for name in imports(path)}
    assert not used & {"examples", "cardiac", "tests", "benchmarks"}


def test_the_rule_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "augment" / "masks.py"
    wrong.parent.mkdir()
    wrong.write_text("from latentaug.tap.latent_tap import LatentTap\nimport matplotlib\n")
    assert strangers(wrong, tmp_path) == {"tap"}
    assert "matplotlib" in imports_at_the_top(wrong)
