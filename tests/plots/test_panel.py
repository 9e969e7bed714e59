from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cockpit_lite import plots
from cockpit_lite.plots import style
from cockpit_lite.plots.labels import Note, Row
from cockpit_lite.plots.panel import panel
from cockpit_lite.report.gauges import blank
from cockpit_lite.run import Run
from tests.plots.synthetic import ALERTS, readings_run


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(5, 2)).add_subplot()


def draw(run: Run, ax: Axes, scale: str = "linear") -> None:
    with panel(run, ax, "Loss", scale=scale, needs="loss") as p:  # type: ignore[arg-type]
        p.line("loss", label="training")


def words(ax: Axes) -> str:
    """Return every text of an axes, drawn once so that packed ones exist."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in ax.findobj(Text))


def marks(ax: Axes, marker: str) -> np.ndarray:
    found = [line.get_xdata() for line in ax.lines if line.get_marker() == marker]
    return np.asarray(found[0]) if found else np.array([])


def test_values_are_drawn_as_they_are(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path, {"loss": [3.0, 2.0, 1.5]}), ax)
    (line,) = ax.lines
    assert np.asarray(line.get_xdata()).tolist() == [0, 1, 2]
    assert np.asarray(line.get_ydata()).tolist() == [3.0, 2.0, 1.5]
    assert "training" in words(ax)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_marked(tmp_path: Path, ax: Axes, bad: float) -> None:
    draw(readings_run(tmp_path, {"loss": [3.0, bad, 1.5, 1.0]}), ax)
    assert marks(ax, "x").tolist() == [1]
    assert "NaN or Inf" in words(ax)
    assert math.isnan(np.asarray(ax.lines[0].get_ydata())[1])


def test_a_run_of_nothing_but_nan_is_drawn(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path, {"loss": [math.nan] * 100}), ax, "log")
    assert 20 <= len(marks(ax, "x")) <= 45
    ax.figure.canvas.draw()


def test_zero_is_marked_on_a_logarithmic_axis(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path, {"loss": [3.0, 0.0, -1.0, 1.0]}), ax, "log")
    assert marks(ax, "v").tolist() == [1, 2]
    assert "zero or less" in words(ax)


def test_a_finite_run_has_no_marks(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path, {"loss": [3.0, 2.0]}), ax)
    assert "NaN" not in words(ax)
    assert len(ax.lines) == 1


def test_a_missing_reading_says_why(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path, {"other": [1.0]}, not_measured={"loss": "the batch holds one sample"}), ax)
    assert "not measured, because the batch holds one" in words(ax)
    assert not ax.lines
    assert not ax.xaxis.get_visible()


def test_a_reading_that_comes_later_replaces_the_reason(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path / "a", {"other": [1.0]}), ax)
    draw(readings_run(tmp_path / "b", {"loss": [1.0, 2.0]}), ax)
    assert "not measured" not in words(ax)
    assert ax.xaxis.get_visible()


def test_a_refresh_moves_artists_and_builds_none(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path / "a", {"loss": [3.0, 2.0]}), ax)
    before = ax.get_children()
    draw(readings_run(tmp_path / "b", {"loss": [3.0, 2.0, 1.0]}), ax)
    assert ax.get_children() == before
    assert np.asarray(ax.lines[0].get_xdata()).tolist() == [0, 1, 2]
    assert ax.get_xlim()[1] == pytest.approx(2 * 1.015)


def test_what_is_not_said_any_more_goes_away(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path / "a", {"loss": [3.0, math.nan]}, alerts=[ALERTS["exploding-gradients"]]), ax)
    assert len(ax.lines) == 3
    draw(readings_run(tmp_path / "b", {"loss": [3.0, 2.0]}), ax)
    assert len(ax.lines) == 1
    assert "CL302" not in words(ax)


def test_a_view_that_a_person_chose_is_left_alone(tmp_path: Path, ax: Axes) -> None:
    draw(readings_run(tmp_path / "a", {"loss": [3.0, 2.0]}), ax)
    ax.set_xlim(0.2, 0.4)
    draw(readings_run(tmp_path / "b", {"loss": [3.0, 2.0, 9.0]}), ax)
    assert ax.get_xlim() == (0.2, 0.4)
    assert ax.get_ylim()[1] > 9.0


def test_alerts_are_marked_where_they_were_raised(tmp_path: Path, ax: Axes) -> None:
    alerts = [ALERTS["exploding-gradients"] | {"step": 20}, ALERTS["ill-conditioning"] | {"step": 5}]
    draw(readings_run(tmp_path, {"loss": [1.0] * 40}, alerts=alerts), ax)
    vertical = {line.get_xdata()[0]: line.get_linestyle() for line in ax.lines if len(set(line.get_xdata())) == 1}
    assert vertical == {20: "-", 5: "--"}
    assert "CL302" in words(ax)
    assert "CL404" in words(ax)


def test_alerts_of_one_step_share_a_mark(tmp_path: Path, ax: Axes) -> None:
    alerts = [ALERTS["exploding-gradients"] | {"step": 7}, ALERTS["ill-conditioning"] | {"step": 7}]
    draw(readings_run(tmp_path, {"loss": [1.0] * 40}, alerts=alerts), ax)
    assert "CL302 +1" in words(ax)
    assert "CL404" not in words(ax)


def test_hundreds_of_alerts_leave_the_curve_visible(tmp_path: Path, ax: Axes) -> None:
    alerts = [ALERTS["ill-conditioning"] | {"step": step} for step in range(300)] + [ALERTS["exploding-gradients"]]
    draw(readings_run(tmp_path, {"loss": [1.0] * 300}, alerts=alerts), ax)
    assert len(ax.lines) < 12
    assert "CL302" in words(ax)


def test_a_limit_is_shown_only_within_reach(tmp_path: Path, ax: Axes) -> None:
    run = readings_run(tmp_path, {"loss": [1.0, 2.0]})
    for value, shown in ((2.2, True), (500.0, False)):
        with panel(run, ax, "Loss", needs="loss") as p:
            p.line("loss")
            p.level("limit", value, "the limit")
        assert (ax.get_ylim()[1] > value) == shown
        assert ("the limit" in words(ax)) == shown


def test_colours_follow_the_background(tmp_path: Path) -> None:
    run = readings_run(tmp_path, {"loss": [1.0, 2.0]})
    for background, theme in (("#ffffff", style.LIGHT), ("#101010", style.DARK)):
        ax = Figure(facecolor=background).add_subplot()
        draw(run, ax)
        assert ax.lines[0].get_color() == theme.series[0]


def test_a_gauge_that_was_thrown_away_is_not_kept(tmp_path: Path) -> None:
    import gc
    import weakref

    ax = Figure().add_subplot()
    draw(readings_run(tmp_path, {"loss": [1.0, 2.0]}), ax)
    gone = weakref.ref(ax)
    del ax
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("nan_from", [10, 60, 95])
@pytest.mark.parametrize("alert", [None, 20, 97])
def test_names_cover_neither_each_other_nor_the_title(nan_from: int, alert: int | None, tmp_path: Path) -> None:
    values = [1.0 + 0.1 * (step % 5) for step in range(nan_from)] + [math.nan] * (100 - nan_from)
    alerts = [] if alert is None else [{**ALERTS["ill-conditioning"], "step": alert}]
    _, ax = blank()
    plots.grad_norm(readings_run(tmp_path, {"grad_norm": values}, alerts=alerts), ax)
    notes = {note.text: note.get_window_extent() for note in ax.findobj(Note) if isinstance(note, Note)}
    assert {"NaN or Inf", "10 × median", *(["CL404"] if alerts else [])} == notes.keys()
    boxes = [*notes.values(), *(row.get_window_extent() for row in ax.findobj(Row))]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
