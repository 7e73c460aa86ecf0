"""Plots: whole files, letters of every script, no trace in matplotlib's settings."""

import logging
import warnings
from pathlib import Path

import pytest
from matplotlib import font_manager, image, rcParams

from shared import plots
from shared.plots import drawing, plot_curves


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_drawing_has_the_size_asked_for_and_leaves_no_setting_behind() -> None:
    before = list(rcParams["font.family"])
    with drawing(Path("new/plot.png"), 4, 2) as figure:
        figure.add_subplot().plot([0, 1])
    assert image.imread("new/plot.png").shape[:2] == (260, 520)
    assert list(rcParams["font.family"]) == before


def test_a_drawing_that_fails_leaves_the_old_plot() -> None:
    Path("plot.png").write_text("old")
    with pytest.raises(ZeroDivisionError), drawing(Path("plot.png"), 4, 2):
        raise ZeroDivisionError
    assert Path("plot.png").read_text() == "old"


def test_letters_that_no_font_has_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plots, "CJK_FONTS", ("No such font",))
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "shared"):
        warnings.simplefilter("error")
        with drawing(Path("plot.png"), 4, 2) as figure:
            figure.suptitle("\U0001f984\U0001f984 a")  # a unicorn
    [record] = caplog.records
    assert record.getMessage() == "plot.png: no font here has \U0001f984, drawn as boxes"
    with drawing(Path("plot.png"), 4, 2) as figure:
        figure.suptitle("好")
    assert "install Noto Sans CJK" in caplog.records[-1].getMessage()


def test_other_warnings_stay_warnings() -> None:
    with pytest.warns(DeprecationWarning, match="old"), drawing(Path("plot.png"), 4, 2):
        warnings.warn("old", DeprecationWarning, stacklevel=1)


def test_an_installed_font_with_more_letters_stands_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(name for name in font_manager.get_font_names() if name != "DejaVu Sans")
    monkeypatch.setattr(plots, "CJK_FONTS", ("No such font", other))
    with drawing(Path("plot.png"), 4, 2):
        assert rcParams["font.family"] == ["DejaVu Sans", other]


def test_a_curve_goes_through_the_rows_that_have_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    lines: dict[str, list[list[float]]] = {}
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: object, **options: object) -> None:
        lines.update({line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].get_lines()})
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    rows = [{"step": 1, "a": 3.0}, {"step": 2, "a": 2.0, "b": 4.0}, {"step": 3, "b": 5.0}]
    plot_curves(rows, {"a": "first", "b": "second", "c": "never"}, Path("plot.png"), ylabel="$", title="a_$b")
    assert lines == {"first": [[1, 3], [2, 2]], "second": [[2, 4], [3, 5]], "never": []}
    assert image.imread("plot.png").shape[:2] == (546, 910)
