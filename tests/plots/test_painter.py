from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cockpit_lite.plots import Layout, Page, activation_std, grad_norm, gradient_noise_scale, loss, style
from cockpit_lite.plots.painter import Painter
from cockpit_lite.plots.quick_text import remember_text
from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import RunWriter
from tests.plots.synthetic import training_run

SMALL = Layout((("ONE", (grad_norm, activation_std)), ("TWO", (gradient_noise_scale,))), wide=loss)


def pixels(page: Page) -> np.ndarray:
    canvas = page.figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def drawn(run: Run, theme: str = "light") -> np.ndarray:
    """Return the page drawn by matplotlib from nothing."""
    page = Page(theme, SMALL)
    page.update(run)
    page.figure.canvas.draw()
    return pixels(page)


def differ(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of pixels that clearly differ: letters may be off by part of a pixel, so its neighbours count, too."""
    shifts = list(itertools.product((-1, 0, 1), repeat=2))
    distance = np.min([np.abs(one - np.roll(other, shift, (0, 1))).max(axis=2) for shift in shifts], axis=0)
    return float((distance > 60).mean())


def test_what_is_painted_bit_by_bit_looks_like_what_is_drawn_at_once(tmp_path: Path) -> None:
    theme = "dark"
    run = training_run(tmp_path / "early", steps=90, status="running")
    page = Page(theme, SMALL)
    painter = Painter(page)
    painter.refresh(run)
    first = pixels(page).copy()
    assert differ(first, drawn(run, theme)) < 1e-3
    later = training_run(tmp_path / "late", steps=120, nan_from=110, alerts=["ill-conditioning"], status="completed")
    painter.refresh(later, budget=None)
    assert differ(pixels(page), first) > 1e-2
    assert differ(pixels(page), drawn(later, theme)) < 1e-3


def test_what_looks_the_same_is_left_alone(tmp_path: Path) -> None:
    run = training_run(tmp_path, steps=50, status="running")
    page = Page(layout=SMALL)
    painter = Painter(page)
    assert painter.refresh(run)
    before = pixels(page).copy()
    assert not painter.refresh(run)
    np.testing.assert_array_equal(pixels(page), before)
    assert painter.refresh(run, "interrupted")  # the header says so
    np.testing.assert_array_equal(pixels(page)[100:], before[100:])


def test_a_frame_is_drawn_once_for_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RunWriter(tmp_path / "run", {"status": "running"})
    writer.block(list(range(1_000)), {"loss": np.linspace(2.0, 1.0, 1_000).tolist()})
    writer.flush()
    run = load_run(writer.folder)
    page = Page(layout=Layout((("", (loss,)),)))
    painter = Painter(page)
    painter.refresh(run)
    axes_drawn: list[Axes] = []
    draw = Axes.draw
    monkeypatch.setattr(Axes, "draw", lambda ax, renderer: (axes_drawn.append(ax), draw(ax, renderer)))
    for step in range(1_000, 1_010):
        writer.step(step, {"loss": 1.5})
        writer.flush()
        run.refresh()
        assert painter.refresh(run)
    assert not axes_drawn
    writer.step(2_000, {"loss": 1.5})
    writer.close()
    run.refresh()
    painter.refresh(run)
    assert len(axes_drawn) == 1


def test_gauges_that_ran_out_of_time_are_the_next_ones(tmp_path: Path) -> None:
    seconds: Iterator[float] = itertools.count()
    asked: list[str] = []

    def spy(name: str) -> object:
        def gauge(run: Run, ax: Axes) -> None:
            asked.append(name)

        return gauge

    run = training_run(tmp_path, steps=3)
    page = Page(layout=Layout((("", tuple(spy(name) for name in "abc")),)))  # type: ignore[arg-type, misc]
    painter = Painter(page, clock=lambda: next(seconds))
    painter.refresh(run, budget=0.5)  # all, the first time
    assert asked == ["a", "b", "c"] and not painter.waiting
    asked.clear()
    for _ in range(4):
        painter.refresh(run, budget=1.5)  # a tick of this clock is a second
    assert asked == ["a", "b", "c", "a", "b", "c", "a", "b"]
    assert painter.waiting
    painter.refresh(run, budget=None)
    assert asked[-3:] == ["c", "a", "b"] and not painter.waiting


def test_another_size_is_painted_anew(tmp_path: Path) -> None:
    run = training_run(tmp_path, steps=30, alerts=["ill-conditioning"])
    page = Page(layout=SMALL)
    painter = Painter(page)
    painter.refresh(run)
    page.figure.set_size_inches(10.0, 6.0)
    assert painter.refresh(run)
    other = Page(layout=SMALL)
    other.figure.set_size_inches(10.0, 6.0)
    other.update(run)
    other.figure.canvas.draw()
    assert differ(pixels(page), pixels(other)) < 1e-3


def test_a_picture_of_what_was_painted(tmp_path: Path) -> None:
    page = Page(layout=SMALL)
    painter = Painter(page)
    painter.refresh(training_run(tmp_path, steps=5))
    assert painter.png()[:8] == b"\x89PNG\r\n\x1a\n"


def test_alerts_come_and_go(tmp_path: Path) -> None:
    page = Page(layout=SMALL)
    painter = Painter(page)
    with_alert = training_run(tmp_path / "a", steps=60, alerts=["ill-conditioning"], status="running")
    without = training_run(tmp_path / "b", steps=60, status="running")
    seen = []
    for run in (without, with_alert, without):
        painter.refresh(run, budget=None)
        seen.append(pixels(page).copy())
    assert differ(seen[1], seen[0]) > 1e-2
    assert differ(seen[2], seen[0]) == 0


# Text -----------------------------------------------------------------------------------------------------------------

TEXTS = ("● loss 0.247, at the start 2.3; still falling", "Gradient norm", "−1.5e-7 × ‖G‖ ½e²·g'Hg", "W A V E  fi ff", "", " ")


def letters(quick: bool) -> np.ndarray:
    figure = Figure(figsize=(4, 2), dpi=100)
    canvas = FigureCanvasAgg(figure)
    if quick:
        remember_text(canvas.get_renderer())
    for number, text in enumerate(TEXTS):
        look = {"weight": "bold", "color": "#d04a00"} if number % 2 else {}
        figure.text(0.02, 0.9 - 0.15 * number, text, size=8.7, family=style.font_family(), parse_math=False, **look)
    figure.text(0.98, 0.1, "100k", ha="right", rotation=90)
    figure.text(0.5, 0.1, r"$\alpha^2$ two" + "\nlines", ha="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_remembered_text_looks_like_drawn_text() -> None:
    true, quick = letters(False), letters(True)
    assert (true < 200).any()
    assert differ(quick, true) < 2e-3
    np.testing.assert_array_equal(quick, letters(True))


def test_a_text_is_as_wide_as_its_pieces() -> None:
    renderer = FigureCanvasAgg(Figure(dpi=100)).get_renderer()
    figure = Figure()
    text = figure.text(0, 0, "", size=8.7)
    true = [renderer.get_text_width_height_descent(words, text.get_fontproperties(), False) for words in TEXTS]
    remember_text(renderer)
    for words, (width, height, descent) in zip(TEXTS, true, strict=True):
        found = renderer.get_text_width_height_descent(words, text.get_fontproperties(), False)
        assert found == pytest.approx((width, height, descent), abs=3.0), words
