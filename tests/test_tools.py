"""What stands in several places is the same: versions of the tools, steps of the checks, oldest and newest releases."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT, README = (ROOT / "pyproject.toml").read_text(), (ROOT / "README.md").read_text()
RUN, HOOKS = (ROOT / ".ci" / "run").read_text(), (ROOT / ".pre-commit-config.yaml").read_text()
WORKFLOWS = [path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")]
CONSTRAINTS = {path.stem: path.read_text() for path in (ROOT / ".ci" / "constraints").glob("*.txt")}


def releases(text: str, tool: str) -> list[str]:
    """List the releases of a tool that a file asks for: by a requirement, a hook's revision or an action's tag."""
    return re.findall(rf"\b{tool}[\w-]*(?:\s*[=<>~!]=\s*|\s+rev:\s*v?|@v?)(\d[\w.]*)", text)


def pinned(name: str) -> dict[str, tuple[int, ...]]:
    """Read the releases that a file of constraints names."""
    return {package: numbers(release) for package, release in re.findall(r"([\w-]+)==([\d.]+)", CONSTRAINTS[name])}


def least(package: str) -> tuple[int, ...]:
    """Read the oldest release of a package that the library asks for."""
    (release,) = re.findall(rf'"{package}>=([\d.]+)"', PYPROJECT)
    return numbers(release)


def numbers(release: str) -> tuple[int, ...]:
    """Take 4.8 for 4.8.0."""
    parts = tuple(map(int, release.split(".")))
    return parts + (0,) * (3 - len(parts))


@pytest.mark.parametrize("tool", ["ruff", "mypy"])
class TestRuffAndMypy:
    def test_the_dev_extra_alone_says_which_release(self, tool: str) -> None:
        assert len(releases(PYPROJECT, tool)) == PYPROJECT.count(f'"{tool}==') == 1
        for text in (RUN, HOOKS, *WORKFLOWS, *CONSTRAINTS.values()):
            assert not releases(text, tool)

    def test_it_is_installed(self, tool: str) -> None:
        try:
            installed = metadata.version(tool)
        except metadata.PackageNotFoundError:
            pytest.skip(f"{tool} is not installed")
        assert [installed] == releases(PYPROJECT, tool), 'pip install -e ".[dev]"'

    def test_hooks_call_the_installed_one(self, tool: str) -> None:
        local = HOOKS.split("- repo: ")[1]
        assert local.startswith("local\n")
        assert f"entry: {tool}" in local
        assert local.count("language: system") == local.count("language:") == local.count("entry:")

    @pytest.mark.parametrize(
        "wrong",
        [
            "pip install {}==0.1.2",
            "pip install {} >= 0.1.2",
            "- repo: https://example.org/{}-pre-commit\n    rev: v0.1.2",
            "- uses: example/{}-action@v0.1.2",
        ],
    )
    def test_another_release_is_noticed(self, tool: str, wrong: str) -> None:
        assert releases(wrong.format(tool), tool) == ["0.1.2"]


class TestSteps:
    def test_workflows_and_script_know_the_same_ones(self) -> None:
        known = set(re.findall(r"^# Steps: (.+)$", RUN, flags=re.MULTILINE)[0].split())
        whole = set(re.findall(r"set -- (.+)", RUN)[0].split())
        called = {
            step for text in WORKFLOWS for line in re.findall(r"run: bash \.ci/run (.+)", text) for step in line.split()
        }
        assert known <= set(re.findall(r"^(\w+)\(\)", RUN, flags=re.MULTILINE))
        assert called == known
        assert known - whole == {"docs", "sdist"}  # the whole of the tests holds those of the docs

    def test_the_script_installs_and_tests_as_the_readme_says(self) -> None:
        ((install, test),) = re.findall(r"^(pip install .+dev.+) && (.+)$", README, flags=re.MULTILINE)
        assert f"\n  {install}\n" in RUN
        assert f"\n  {test} " in RUN


class TestReleases:
    def test_every_file_of_constraints_names_a_torch_and_is_used(self) -> None:
        assert all("torch" in pinned(name) for name in CONSTRAINTS)
        assert set(re.findall(r"constraints: (\w+)", "".join(WORKFLOWS))) == CONSTRAINTS.keys()

    @pytest.mark.parametrize("package", ["torch", "numpy", "typing-extensions"])
    def test_the_core_is_tested_with_the_least_that_it_asks_for(self, package: str) -> None:
        assert pinned("core")[package] == least(package)

    def test_the_oldest_and_the_newest_are_tested_and_promised(self) -> None:
        (python,) = re.findall(r'requires-python = ">=([\d.]+)"', PYPROJECT)
        (torch,) = re.findall(r'"torch>=([\d.]+)"', PYPROJECT)
        classified = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
        assert classified[0] == python
        assert pinned("oldest")["torch"] == numbers(torch)
        assert f"Python {python} or newer, PyTorch {torch} or newer" in README
        rows = re.findall(r'python: "([\d.]+)", constraints: (\w+)', "".join(WORKFLOWS))
        assert set(rows) == {(python, "oldest"), (python, "core"), (classified[-1], "newest")}
