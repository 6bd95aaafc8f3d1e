"""The public names and their signatures are a promise: they change together with `api.json`, on purpose, or not at all.

After a deliberate change: `python tests/test_api.py` rewrites the list.
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import latentaug

LIST = Path(__file__).with_name("api.json")


def describe(value: object) -> object:
    """Return the arguments of a callable, with defaults; of a class, those of its public methods and its attributes."""
    if inspect.isclass(value):
        own = {name: member for cls in reversed(value.__mro__[:-1]) if ours(cls) for name, member in vars(cls).items()}
        members = {name: member for name, member in own.items() if not name.startswith("_") or name == "__call__"}
        return {"()": arguments(value)} | {
            name: arguments(member) if inspect.isfunction(member) else "attribute"
            for name, member in sorted(members.items())
        }
    return arguments(value) if callable(value) else type(value).__name__


def ours(cls: type) -> bool:
    return cls.__module__.startswith("latentaug")


def arguments(function: object) -> str:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    text = str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", text)


def current() -> dict[str, object]:
    return {name: describe(getattr(latentaug, name)) for name in sorted(latentaug.__all__)}


def test_public_names_and_signatures_are_those_promised() -> None:
    assert current() == json.loads(LIST.read_text())


def test_a_changed_default_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latentaug, "paper_masks", lambda hard=True: hard)
    assert current() != json.loads(LIST.read_text())


def test_importing_the_library_imports_no_extra() -> None:
    extras = ("matplotlib", "tensorboard", "torch.utils.tensorboard", "monai", "nibabel", "torchio", "scipy")
    code = f"import sys, latentaug; print([name for name in {extras} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


def test_the_loop_is_imported_when_one_of_its_names_is_asked_for() -> None:
    code = """
import sys, latentaug
loop = {name for name in latentaug.__all__ if name not in vars(latentaug)}
assert set(latentaug.__all__) <= set(dir(latentaug))
assert not [name for name in sys.modules if name.startswith("latentaug.training")]
rooms = {getattr(latentaug, name).__module__.split(".")[1] for name in loop}
print(len(loop), *rooms)
"""
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *rooms = seen.stdout.split()
    assert int(count) > 5
    assert rooms == ["training"]
    with pytest.raises(AttributeError, match="module 'latentaug' has no attribute 'Trainer'"):
        latentaug.Trainer  # noqa: B018


if __name__ == "__main__":
    LIST.write_text(json.dumps(current(), indent=1) + "\n")
