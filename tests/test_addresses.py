"""Where the page of a package leads to: the repository that the release is built for, at the tag of its version."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
ADDRESS, HOOKS = "https://example.org/owner/name", "hatchling.metadata.plugin.interface"
TARGET = re.compile(r"""\]\(([^)\s]+)|^\[[^\]]+\]: +(\S+)|\b(?:href|src)=["']([^"']+)""", flags=re.MULTILINE)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `hatch_build.py` defines; its base class holds nothing that is used here but the folder."""

    class Interface:
        def __init__(self, root: str) -> None:
            self.root = root

    monkeypatch.setitem(sys.modules, HOOKS, SimpleNamespace(MetadataHookInterface=Interface))
    return runpy.run_path(str(ROOT / "hatch_build.py"))


def code(text: str) -> list[str]:
    return re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)


def targets(text: str) -> list[str]:
    """List what a page of Markdown leads to, other than places on itself."""
    for block in code(text):
        text = text.replace(block, "")
    found = ["".join(groups) for groups in TARGET.findall(text)]
    return [target for target in found if not target.startswith("#")]


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution has neither figures nor results")
def test_every_link_of_the_readme_leads_to_a_file_at_the_tag(hook: dict[str, Any]) -> None:
    page = (ROOT / "README.md").read_text()
    built = hook["absolute"](page, ADDRESS, "1.2.3")
    inside = [target.removeprefix(ADDRESS) for target in targets(built) if target.startswith(ADDRESS)]
    assert len(inside) == sum("://" not in target for target in targets(page)) > 20
    assert all("://" in target for target in targets(built))
    led = [re.fullmatch(r"/(blob|raw)/v1\.2\.3/([^#]+)(#.+)?", target).groups() for target in inside]  # type: ignore[union-attr]
    assert [path for _, path, _ in led if not (ROOT / path).exists()] == []
    assert [path for kind, path, _ in led if kind == "raw"] == re.findall(r"!\[.*?\]\((.+?)\)", page)
    assert [code(built), page.count("](")] == [code(page), built.count("](")]


def test_links_and_images_become_absolute_and_nothing_else(hook: dict[str, Any]) -> None:
    page = """
[a](docs/a.md), [`b`](b.py#c) and [here](#there), ![picture](p.png), [![badge](b.svg)](LICENSE)
[web](https://example.com/x.md) [mail](mailto:a@example.com) [root](/x) `[code](a.md)`

```python
table[0](a)
```

[ref]: docs/r.md
[out]: https://example.com
"""
    expected = """
[a](A/blob/v1/docs/a.md), [`b`](A/blob/v1/b.py#c) and [here](#there), ![picture](A/raw/v1/p.png), [![badge](A/raw/v1/b.svg)](A/blob/v1/LICENSE)
[web](https://example.com/x.md) [mail](mailto:a@example.com) [root](/x) `[code](a.md)`

```python
table[0](a)
```

[ref]: A/blob/v1/docs/r.md
[out]: https://example.com
"""  # noqa: E501
    assert hook["absolute"](page, "https://A", "1") == expected.replace("(A/", "(https://A/").replace(
        " A/", " https://A/"
    )
    assert hook["absolute"](page, None, "1") == page


def test_without_an_address_there_are_no_links_of_the_project(
    hook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LATENTAUG_ADDRESS", raising=False)
    metadata: dict[str, Any] = {"version": "1"}
    hook["Addresses"](str(ROOT)).update(metadata)
    assert metadata["urls"] == {}
    assert metadata["readme"] == {"content-type": "text/markdown", "text": (ROOT / "README.md").read_text()}


def test_a_wheel_from_a_source_distribution_keeps_what_that_one_has(
    hook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTAUG_ADDRESS", ADDRESS)
    (tmp_path / "README.md").write_text("[a](a)")
    fresh: dict[str, Any] = {"version": "1"}
    hook["Addresses"](str(tmp_path)).update(fresh)
    assert fresh["urls"]["Source"] == f"{ADDRESS}/tree/v1"
    assert fresh["readme"]["text"] == f"[a]({ADDRESS}/blob/v1/a)"
    (tmp_path / "PKG-INFO").touch()
    kept = {"version": "1", "readme": "as it was"}
    hook["Addresses"](str(tmp_path)).update(kept)
    assert kept == {"version": "1", "readme": "as it was", "urls": {}}


@pytest.mark.parametrize("wrong", ["owner/name", "http://example.org/a/b", "https://example.org", "https://a.b/c d"])
def test_what_is_no_address_is_refused(hook: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=f"such as https://host/owner/name; got '{wrong}'"):
        hook["given"]({"LATENTAUG_ADDRESS": wrong})


@pytest.mark.slow
@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution is built from the repository")
def test_what_is_built_leads_to_the_repository(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    pytest.importorskip("build")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path)]
    without = {name: value for name, value in os.environ.items() if name != "LATENTAUG_ADDRESS"}
    subprocess.run([*build, "--sdist", str(ROOT)], env={**without, "LATENTAUG_ADDRESS": ADDRESS}, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    subprocess.run([*build, "--wheel", str(unpacked)], env=without, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        of_wheel = wheel.read(name).decode()
    pages: list[Message] = [HeaderParser().parsestr(text) for text in (of_wheel, (unpacked / "PKG-INFO").read_text())]
    for page in pages:
        named = dict(link.split(", ") for link in page.get_all("Project-URL", []))
        assert named.keys() == {"Homepage", "Documentation", "Source", "Changelog", "Issues"}
        assert all(address.startswith(ADDRESS) for address in named.values())
        assert all("://" in target for target in targets(page.get_payload()))
        assert page.get_payload().count(f"{ADDRESS}/raw/v{page['Version']}/docs/images/") == 2
