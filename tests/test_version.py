"""The version stands in `pyproject.toml` and nowhere else."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import latentaug

ROOT = Path(__file__).parent.parent

NEVER_INSTALLED = """
from importlib import metadata

def version(name):
    raise metadata.PackageNotFoundError(name)

metadata.version = version
import latentaug
print(latentaug.__version__)
"""


def declared() -> str:
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert found
    return found[1]


def test_the_version_is_that_of_the_package() -> None:
    assert latentaug.__version__ == metadata.version("latentaug") == declared(), "install it anew: pip install -e ."


def test_a_checkout_that_was_never_installed_has_none() -> None:
    command = [sys.executable, "-c", NEVER_INSTALLED]
    seen = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "0+unknown"


@pytest.mark.parametrize("path", [Path(latentaug.__file__), ROOT / "CITATION.cff"], ids=lambda path: path.name)
def test_no_other_file_states_it(path: Path) -> None:
    assert declared() not in path.read_text()
