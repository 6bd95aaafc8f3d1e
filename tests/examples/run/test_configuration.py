"""Settings as a file: what is written is read again, and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import acdc_cooperative
from cardiac.run.arguments import parse
from study.data.frame import DataError
from study.run.configuration import read_arguments, to_toml, tomllib

plain = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
)
names = st.from_regex(r"[a-z][a-z0-9_-]{0,20}", fullmatch=True)


@given(st.dictionaries(names, st.one_of(plain, st.lists(plain))))
def test_toml_reads_what_was_written(settings: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(settings)) == settings


def written(folder: Path, text: str) -> str:
    path = folder / "run.toml"
    path.write_text(text)
    return str(path)


def settings_of(*arguments: str) -> dict[str, Any]:
    return vars(parse(arguments))


def test_every_setting_may_come_from_a_file_by_its_flags_name(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """
        acdc = "some where"
        external = ["A=one", "B=two"]
        preset = "paper"
        methods = ["noise", "table2"]
        layers = ["encoder[5]", "encoder[4]"]
        learning-rate = 3e-3
        batch_size = 6
        halve = true
        seed = 5
        """,
    )
    by_file = settings_of("--config", file)
    by_flags = settings_of(
        *("--acdc", "some where", "--external", "A=one", "--external", "B=two", "--preset", "paper"),
        *("--methods", "noise", "table2", "--layers", "encoder[5]", "encoder[4]"),
        *("--learning-rate", "3e-3", "--batch-size", "6", "--halve", "--seed", "5"),
    )
    assert {name for name in by_file if by_file[name] != by_flags.get(name)} == {"config"}
    assert (by_file["iterations"], by_file["learning_rate"], by_file["halve"]) == (None, 3e-3, True)


def test_flags_take_precedence_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = written(tmp_path, 'preset = "quick"\niterations = 7\nseed = 3\nhalve = false\nexternal = ["A=one"]\n')
    settings = settings_of("--config", file, "--iterations", "9", "--external", "B=two")
    assert settings["iterations"] == 9
    assert settings["external"] == ["B=two"]
    assert (settings["seed"], settings["halve"], settings["batch_size"]) == (3, False, 8)
    assert settings_of("--config", file, "--preset", "paper")["batch_size"] == 20
    assert settings_of("--config", file, "--halve")["halve"] is True


def test_layers_on_the_command_line_replace_depths_in_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, "depths = [5, 4]\n")
    assert settings_of("--config", file)["depths"] == [5, 4]
    settings = settings_of("--config", file, "--layers", "encoder")
    assert (settings["depths"], settings["layers"]) == ([], ["encoder"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("iteration = 3", "no setting is called 'iteration' (closest: iterations)"),
        ("colour = 3", "no setting is called 'colour'"),
        ("resume = true", "no setting is called 'resume'"),
        ("iterations = ", "cannot be read"),
        ('iterations = "many"', "--iterations"),
        ("iterations = 1.5", "--iterations"),
        ("halve = 3", "--halve"),
        ("seed = true", "--seed"),
        ('methods = ["magic"]', "magic"),
        ("[preset]\niterations = 3", "preset must be a string, a number"),
        ("acdc = 2001-01-01", "acdc must be a string, a number"),
    ],
)
def test_a_bad_file_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str
) -> None:
    file = written(tmp_path, text)
    assert acdc_cooperative.main(["--config", file]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --config {file}: ")
    assert error.count("\n") == 1
    assert named in error


def test_a_missing_file_is_named_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert acdc_cooperative.main(["--config", str(tmp_path / "absent.toml")]) == 2
    assert "absent.toml: cannot be read" in capsys.readouterr().err


def test_a_value_of_the_file_is_no_flag_of_another_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no setting is called 'config'"):
        read_arguments(tmp_path / written(tmp_path, 'config = "x"'), ["seed"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_settings_that_an_editor_saved_anew_are_the_same(tmp_path: Path, encoding: str, end: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(f'iterations = 7{end}acdc = "Jörg"{end}'.encode(encoding))
    assert read_arguments(file, ["iterations", "acdc"]) == ["--iterations=7", "--acdc=Jörg"]


@pytest.mark.parametrize("text", ["x = " + "[" * 200_000, "x = " + "1" * 5000, "iterations = 7\0"])
def test_settings_of_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"cannot be read .* Correct it"):
        read_arguments(Path(written(tmp_path, text)), ["iterations", "x"])
