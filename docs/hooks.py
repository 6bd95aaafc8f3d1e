"""What the site needs beyond the pages: the API's, made of the docstrings, and files that pages show from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
ELSEWHERE = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)([^)]*\))")
LINKED_FOLDER = re.compile(r"\[([^\[\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")
SHOWN = ("tap", "augment", "discovery", "cooperative", "training", "nets")
"""Rooms of the library, in the order of their pages; what is in none is on a page of its own, the last."""


def on_config(config: Any) -> Any:
    """Put the pages of the API into the navigation."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    reference[:] = [part for part in reference if "API" not in part]
    reference.append({"API": [{room: f"api/{room}.md"} for room in (*SHOWN, "others")]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the API, and the files outside of the folder that pages link to."""
    for room, text in _api().items():
        files.append(File.generated(config, f"api/{room}.md", content=text))
    for page in [file for file in files if file.src_uri.endswith(".md") and file.abs_src_path]:
        for target in _outside(Path(page.abs_src_path)):
            if target.is_file() and (uri := f"source/{_inside(target)}") not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Lead links outside of the folder to the files that were added; one to another folder is left as its name."""
    if not page.file.abs_src_path:
        return markdown
    here = Path(page.file.abs_src_path).parent
    up = "../" * page.file.src_uri.count("/")

    def led(match: re.Match[str]) -> str:
        target = (here / match[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return match[0]
        if target == ROOT / "README.md":
            return f"{match[1]}{up}start-here.md)"
        return f"{match[1]}{up}source/{_inside(target)}{match[3]}"

    return ELSEWHERE.sub(led, LINKED_FOLDER.sub(lambda match: _words_of(match, here), markdown))


def _words_of(match: re.Match[str], here: Path) -> str:
    """Return a link as it is, or its words if it leads to another folder."""
    return match[1] if (here / match[2]).resolve().is_dir() else match[0]


def _api() -> dict[str, str]:
    import latentaug

    pages: dict[str, list[str]] = {room: [] for room in (*SHOWN, "others")}
    for name in sorted(latentaug.__all__, key=str.lower):
        found = getattr(latentaug, name)
        room = getattr(found, "__module__", "latentaug.others").split(".")[1]
        pages[room if room in SHOWN else "others"].append(name)
    texts = {}
    for room, names in pages.items():
        blocks = "\n\n".join(f"::: latentaug.{name}" for name in names)
        texts[room] = f"# {room}\n\n{_about(room)}\n\n{blocks}\n"
    return texts


def _about(room: str) -> str:
    """Return the first paragraph of a room's line in the docstring of the library."""
    import latentaug

    found = re.search(rf"^- `{room}`: (.+?)(?=\n- |\n\n|\Z)", latentaug.__doc__ or "", flags=re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def _outside(page: Path) -> Iterator[Path]:
    for match in ELSEWHERE.finditer(page.read_text()):
        target = (page.parent / match[2]).resolve()
        if not target.is_relative_to(ROOT / "docs") and target.is_relative_to(ROOT):
            yield target


def _inside(target: Path) -> str:
    path = target.relative_to(ROOT).as_posix()
    return f"{path}.txt" if path.endswith((".md", ".py")) else path  # shown as text, and made no page of
