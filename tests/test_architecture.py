"""The house rule: imports point downwards only, and the core imports nothing that is an extra."""

import ast
import sys
from pathlib import Path

import pytest

import latentaug

PACKAGE = Path(latentaug.__file__).parent

# Each level may import from those before it, and from `BESIDE`.
LEVELS = [
    {"layout", "modes", "losses", "allocator", "shortcuts", "results", "ways"},
    {"masks", "trace", "heads", "grids"},
    {"compose", "replay", "networks", "outputs", "activations"},
    {"planning"},
    {"locations"},
    {"candidates"},
    {"discovery"},
    {"tap", "saliency", "codes"},
    {"branches", "construction", "taps", "description"},
    {"cooperative"},
    {"steps"},
    {"metrics", "checkpoint", "interruption", "batches", "optimization"},
    {"callbacks"},
    {"trainer"},
    {"integrations", "visualize"},
]
BESIDE = {"saliency": {"tap"}}
FINDING = {"grids", "ways", "locations", "candidates", "discovery"}
STRANGERS = {  # rooms that must know nothing of one another, whatever their level
    "masks": {"tap", "trace", "replay", "planning", "losses", "heads"} | FINDING,
    "tap": {"masks", "compose", "losses", "heads"},
    "losses": {"masks", "tap"},
    "visualize": {"trainer", "cooperative", "tap"} | FINDING,
}
CORE = {"torch", "numpy", "typing_extensions"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def top_level_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("latentaug.")}


def level(room: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if room in names)


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in rooms(imports(path)) - {room}:
        assert level(other) < level(room) or other in BESIDE.get(room, ()), f"{room} imports {other}"
        assert other not in STRANGERS.get(room, ()), f"{room} must not know {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_extras_are_imported_where_they_are_used(path: Path) -> None:
    outside = {(name or "").split(".")[0] for name in top_level_imports(path)} - {"latentaug"}
    assert outside - set(sys.stdlib_module_names) <= CORE


def test_the_library_knows_no_example() -> None:
    used = set().union(*(imports(path) for path in FILES))
    assert not {name for name in used if name.split(".")[0] in {"examples", "cardiac", "tests", "benchmarks"}}


def test_the_rule_sees_an_upward_import(tmp_path: Path) -> None:
    wrong = tmp_path / "masks.py"
    wrong.write_text("from latentaug.trainer import CooperativeTrainer\nimport matplotlib\n")
    assert rooms(imports(wrong)) == {"trainer"}
    assert level("trainer") > level("masks")
    assert "matplotlib" in top_level_imports(wrong)
