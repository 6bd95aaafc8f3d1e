"""The notebooks are kept without outputs, lead somewhere, and run from the first cell to the last."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted((DOCS / "tutorials").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["cells"]
    return found


def test_there_are_three_and_the_site_lists_them() -> None:
    assert len(NOTEBOOKS) == 3
    if (DOCS.parent / "mkdocs.yml").exists():  # a source distribution has none
        listed = (DOCS.parent / "mkdocs.yml").read_text()
        assert all(f"tutorials/{path.stem}.md" in listed for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_its_links_lead_somewhere(path: Path) -> None:
    for cell in cells(path):
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        targets = re.findall(r"\]\((?!https?:)([^)#]+)", "".join(cell["source"]))
        assert cell["cell_type"] == "code" or [one for one in targets if not (path.parent / one).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_the_site_runs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")
    for library in ("nbclient", "ipykernel", *re.findall(r"^(?:import|from) (\w+)", code, flags=re.MULTILINE)):
        pytest.importorskip(library)
    from docs.notebooks import shown

    monkeypatch.delenv("LATENTAUG_NOTEBOOKS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    page, pictures = shown(path, path.read_text())
    assert page.startswith("# ")
    assert pictures
    assert all(f"]({name})" in page and picture.startswith(b"\x89PNG") for name, picture in pictures.items())
    assert "```text" in page
    assert "Traceback" not in page
