"""Figures show themselves, and once."""

import pickle
import sys

import pytest

pytest.importorskip("matplotlib")

from latentaug.figure import new_figure


def test_a_figure_shows_itself_as_it_is_when_it_is_shown() -> None:
    figure = new_figure(2, 1)
    empty = figure._repr_png_()  # type: ignore[attr-defined]
    figure.subplots().plot([0, 1])
    assert len(figure._repr_png_()) > len(empty)  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(figure))
    assert again._repr_png_()[1:4] == b"PNG"


def test_pyplot_knows_nothing_of_it() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    new_figure(1, 1)
    assert pyplot.get_fignums() == before


def test_a_missing_matplotlib_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="matplotlib"):
        new_figure(1, 1)
