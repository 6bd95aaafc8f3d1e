"""What the README and the guides show runs as it stands, and their links lead somewhere."""

import ast
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import latentaug

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


WARNING = {"lightning.md": pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")}
"""Pages of a library that warns of loaders without workers, and of its own calls of PyTorch."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=WARNING.get(page.name, ()), id=page.name) for page in PAGES if blocks(page)],
)
def test_code_on_a_page_runs_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in re.findall(r"^(?:import|from) (\w+)", "\n".join(blocks(page)), flags=re.MULTILINE):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), namespace)
        if told := re.search(r"^# finds (.+)$", block, flags=re.MULTILINE):
            coop = namespace["coop"]
            assert ", ".join(map(str, coop.shape_codes)) == told[1]


def test_the_readme_shows_tap_model_trainer_and_five_libraries() -> None:
    page = "".join(blocks(ROOT / "README.md"))
    assert len(blocks(ROOT / "README.md")) == 3 + 5
    assert page.count("\n# finds ") == 5
    for library in (
        "segmentation_models_pytorch",
        "monai",
        "torchvision",
        "transformers",
        "dynamic_network_architectures",
    ):
        assert f"{library}" in page


@pytest.mark.skipif((ROOT / "PKG-INFO").exists(), reason="a source distribution has neither figures nor results")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_errors_that_are_explained_are_those_that_are_raised() -> None:
    trees = [ast.parse(path.read_text()) for path in Path(latentaug.__file__).parent.rglob("*.py")]
    said = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    texts = "\n".join(text for text in said if isinstance(text, str))
    page = " ".join((ROOT / "docs" / "reference" / "errors.md").read_text().split())
    quoted = re.findall(r'\*\*"([^*]+)"\.?\*\*', page)
    assert len(quoted) > 10
    parts = [part.strip(" .") for message in quoted for part in message.split("…")]
    assert [part for part in parts if part not in texts] == []


@pytest.mark.slow
def test_the_gallery_draws_every_transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["transform_gallery.py", "--quick", str(tmp_path / "gallery.jpg")])
    drawn = runpy.run_path(str(ROOT / "examples" / "transform_gallery.py"))
    assert {name.split("\n")[0] for name in drawn["pictures"]} > {"images", "MaxStyle", "GIN", "RandomChannelMask"}
    assert all(picture.isfinite().all() for picture in drawn["pictures"].values())
    assert (tmp_path / "gallery.jpg").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["custom_loop", "wrap_unet", "mixstyle_torchvision", "own_transform", "train_3d"])
def test_short_examples_run_and_learn(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "examples" / f"{name}.py"
    text = path.read_text()
    assert len(text.splitlines()) <= 80
    assert not re.search(r"^(from|import) (cardiac|tests|benchmarks|examples)", text, flags=re.MULTILINE)
    runpy.run_path(str(path), run_name="__main__")
    losses = [float(line) for line in re.findall(r"(?:loss|segmentation) (\d+\.\d+)", capsys.readouterr().out)]
    assert losses[-1] < losses[0]
