"""Runs the notebooks, and makes pages of them: they are kept without outputs, which the site shows as they come out."""

from __future__ import annotations

import functools
import os
import re
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import Any, NamedTuple

QUIET = {"PYTHONWARNINGS": "ignore", "MPLBACKEND": "module://matplotlib_inline.backend_inline", "OMP_NUM_THREADS": "1"}
QUIETLY = ["--log-level=ERROR"]


class Shown(NamedTuple):
    """A notebook as a page, and the pictures on it by their names."""

    page: str
    pictures: dict[str, bytes]


def executed(text: str) -> Any:
    """Run a notebook from its text; return it with its outputs. All that it writes is in a folder that is removed.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raises.
        TimeoutError: A cell takes more than three minutes.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.reads(text, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        options = {"extra_arguments": QUIETLY, "resources": {"metadata": {"path": folder}}}
        client = NotebookClient(notebook, timeout=180, **options)
        client.execute(env={**os.environ, **QUIET, "TMPDIR": folder})
    return notebook


@functools.cache
def shown(path: Path, text: str) -> Shown:
    """Return a notebook as a page, run anew if its text is another one.

    `LATENTAUG_NOTEBOOKS=unexecuted` in the environment leaves outputs out, which is faster.
    """
    import nbformat

    if os.environ.get("LATENTAUG_NOTEBOOKS") == "unexecuted":
        notebook = nbformat.reads(text, as_version=4)
    else:
        notebook = executed(text)
    title, *cells = notebook.cells
    assert title.source.startswith("# "), f"{path.name} begins with its title"
    head, _, rest = title.source.partition("\n")
    download = f"*This page is a notebook: [{path.name}]({path.name}). Its outputs are those of this build.*"
    parts, pictures = [head, download, _to_pages(rest)], dict[str, bytes]()
    for cell in cells:
        if cell.cell_type == "markdown":
            parts.append(_to_pages(cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in _joined(cell.outputs):
            parts.append(_output(output, path.stem, pictures))
    return Shown("\n\n".join(parts) + "\n", pictures)


def _to_pages(source: str) -> str:
    """Lead links to other notebooks to their pages."""
    return re.sub(r"\.ipynb([)#])", r".md\1", source)


def _joined(outputs: list[Any]) -> list[Any]:
    """Put what was written in pieces together, before what was shown in between."""
    streams = {name: "".join(one.text for one in outputs if one.get("name") == name) for name in ("stderr", "stdout")}
    written = [text for name in streams if (text := _as_on_a_terminal(streams[name]))]
    return [*written, *(one for one in outputs if one.output_type != "stream")]


def _as_on_a_terminal(text: str) -> str:
    """Return the lines that are left where a carriage return writes over what was there, as bars do."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in text.split("\n")).strip("\n")


def _output(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    """Show what a cell wrote, or the richest form of what it returned."""
    if isinstance(output, str):
        return f"```text\n{output}\n```"
    data = output.data
    if "image/png" in data:
        picture = f"{name}-{len(pictures) + 1}.png"
        pictures[picture] = b64decode(data["image/png"])
        return f"![What the cell above draws]({picture})"
    if "text/html" in data:
        return f'<div class="output">\n{data["text/html"].strip()}\n</div>'
    return f"```text\n{data['text/plain']}\n```"
