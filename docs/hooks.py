"""What the site needs beyond the pages: the API's, made of the docstrings; notebooks; files that pages show."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path

from notebooks import shown

ROOT = Path(__file__).parent.parent
ELSEWHERE = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)([^)]*\))")
NOTEBOOK = re.compile(r"(\]\([^)\s:]+)\.ipynb\)")
LINKED_FOLDER = re.compile(r"\[([^\[\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")
SHOWN = ("tap", "augment", "discovery", "cooperative", "training", "nets")
"""Rooms of the library, in the order of their pages; what is in none is on a page of its own, the last."""
PAGES = (*SHOWN, "robustness", "others", "integrations")
BESIDE = (("training", "training.callbacks"), ("training", "training.watching"), ("others", "plot"))
"""Public modules whose names the library itself has only in part, and the pages that they are on."""
PACKAGE = ROOT / "latentaug"


def on_config(config: Any) -> Any:
    """Put the pages of the API into the navigation."""
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    reference[:] = [part for part in reference if "API" not in part]
    reference.append({"API": [{room: f"api/{room}.md"} for room in PAGES]})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the API, and the files outside of the folder that pages link to."""
    for room, text in _api().items():
        files.append(File.generated(config, f"api/{room}.md", content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        path = Path(str(file.abs_src_path))
        page, pictures = shown(path, path.read_text())
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=page))
        for name, picture in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=picture))
    for page in [file for file in files if file.src_uri.endswith(".md") and file.abs_src_path]:
        for target in _outside(Path(page.abs_src_path)):
            if target.is_file() and (uri := f"source/{_inside(target)}") not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Lead links outside of the folder to the files that were added; one to another folder is left as its name."""
    if not page.file.abs_src_path:
        return markdown
    markdown = NOTEBOOK.sub(r"\1.md)", markdown)
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
    from latentaug import robustness

    pages: dict[str, list[str]] = {room: [] for room in PAGES}
    for name in sorted(latentaug.__all__, key=str.lower):
        found = getattr(latentaug, name)
        room = getattr(found, "__module__", "latentaug.others").split(".")[1]
        pages[room if room in SHOWN else "others"].append(f"latentaug.{name}")
    for room, module in BESIDE:
        known = {name.rpartition(".")[2] for name in pages[room]}
        pages[room] += [
            f"latentaug.{module}.{name}" for name in _public(PACKAGE / f"{module.replace('.', '/')}.py", known)
        ]
    pages["robustness"] = [f"latentaug.robustness.{name}" for name in robustness.__all__]
    texts = {room: f"# {room}\n\n{_about(room)}\n\n{_blocks(names)}\n" for room, names in pages.items()}
    return texts | {"integrations": _doors()}


def _doors() -> str:
    """Return the page of the frameworks: what each door has, read without its framework."""
    parts = ["# integrations", _about("integrations")]
    for path in sorted((PACKAGE / "integrations").iterdir()):
        name = f"latentaug.integrations.{path.stem}"
        if path.suffix == ".py" and path.stem != "__init__":
            file, names = path, [f"{name}.{one}" for one in _public(path)]
        elif (file := path / "__init__.py").is_file():
            trainers = path / "trainers" / "latentaug_trainers.py"  # which nnU-Net loads by its bare name
            names = [f"{name}.{one}" for one in _exported(file)] + [
                f"{trainers.stem}.{one}" for one in _public(trainers)
            ]
        else:
            continue
        parts += [f"## `{name}`", ast.get_docstring(ast.parse(file.read_text())) or "", _blocks(names, level=3)]
    return "\n\n".join(parts) + "\n"


def _blocks(names: list[str], level: int = 2) -> str:
    return "\n\n".join(f"::: {name}\n    options: {{heading_level: {level}}}" for name in names)


def _public(path: Path, known: Iterable[str] = ()) -> list[str]:
    """Return the names that a file defines, in its order, but for private and known ones; none if it is not there."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    body = ast.parse(path.read_text()).body if path.is_file() else []
    return [one.name for one in body if isinstance(one, kinds) and one.name[0] != "_" and one.name not in known]


def _exported(path: Path) -> list[str]:
    """Return the names in `__all__`."""
    for one in ast.parse(path.read_text()).body:
        if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "__all__":
            return list(ast.literal_eval(one.value))
    return []


def _about(room: str) -> str:
    """Return the first paragraph of a room's line in the docstring of the library."""
    import latentaug

    found = re.search(rf"^- `{room}`: (.+?)(?=\n- |\n\n|\Z)", latentaug.__doc__ or "", flags=re.MULTILINE | re.DOTALL)
    text = " ".join(found[1].split()) if found else ""
    return text[:1].upper() + text[1:]


def _outside(page: Path) -> Iterator[Path]:
    for match in ELSEWHERE.finditer(page.read_text()):
        target = (page.parent / match[2]).resolve()
        if not target.is_relative_to(ROOT / "docs") and target.is_relative_to(ROOT):
            yield target


def _inside(target: Path) -> str:
    path = target.relative_to(ROOT).as_posix()
    return f"{path}.txt" if path.endswith((".md", ".py")) else path  # shown as text, and made no page of
