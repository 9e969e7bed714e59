"""Painter: keeps the picture of a page up to date while a run grows, touching only pixels that change.

matplotlib draws a page of twelve gauges in about half a second, nearly all of it ticks and words that are the same as before.
So of every gauge the *frame* (card, ticks, grid, title, legend) is kept as pixels for as long as it stays the same; a refresh
puts it back and draws curves, marks and verdict over it. A gauge that looks the same is left alone.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.image import imsave

from cockpit_lite.plots.page import Page, missing_glyphs_are_fine
from cockpit_lite.plots.panel import panel_of
from cockpit_lite.plots.quick_text import remember_text
from cockpit_lite.run import Run

#: Seconds a refresh may take before gauges have to wait for the next one.
BUDGET = 0.05


class Painter:
    """Paints a page on the canvas of its figure.

    Args:
        page: The page; its canvas must draw with Agg, as those of all windows here do.
        clock: Seconds; replaced in tests.
    """

    def __init__(self, page: Page, clock: Callable[[], float] = time.perf_counter):
        self._page = page
        self._canvas: Any = page.figure.canvas
        self._clock = clock
        self._renderer: Any = None
        self._empty: dict[Hashable, Any] = {}  # pixels of each part without its gauge or words
        self._frames: dict[Hashable, tuple[Any, Any]] = {}  # what a frame depends on, and its pixels
        self._shown: dict[Hashable, Any] = {}  # what each part shows
        self._turns = list(page.gauges)  # the first one has waited longest
        self._waiting = False

    @property
    def waiting(self) -> bool:
        """Whether gauges are still to be brought up to date."""
        return self._waiting

    def refresh(self, run: Run, state: str | None = None, budget: float | None = BUDGET) -> bool:
        """Show the run as it stands; return whether a pixel may have changed.

        Args:
            run: The run; call its ``refresh`` before.
            state: Overrides what the run says of itself.
            budget: Seconds; the gauges that are left then are the first of the next refresh. None: all gauges, at any cost. The
                first time, and after the window got another size, everything is painted.
        """
        with missing_glyphs_are_fine():
            return self._refresh(run, state, budget)

    def _refresh(self, run: Run, state: str | None, budget: float | None) -> bool:
        started = self._clock()
        page = self._page
        page.place()
        fresh = self._prepare()
        page.write(run, state)
        changed = fresh
        for part in page.words:
            changed |= self._paint_words(part)
        shown = 0
        for key in tuple(self._turns):
            shown += 1
            page.show(key, run)
            changed |= self._paint_gauge(key)
            self._turns.append(self._turns.pop(0))
            if budget is not None and not fresh and self._clock() - started > budget:
                break
        self._waiting = shown < len(self._turns)
        return changed

    def png(self) -> bytes:
        """Return what was painted as a PNG picture."""
        buffer = io.BytesIO()
        imsave(buffer, np.asarray(self._renderer.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        return buffer.getvalue()

    def _prepare(self) -> bool:
        """Paint what is behind everything if the canvas is new or has another size; return whether that was so."""
        renderer = self._canvas.get_renderer()
        if renderer is self._renderer:
            return False
        self._renderer = renderer
        remember_text(renderer)
        self._frames.clear()
        self._shown.clear()
        figure = self._page.figure
        hidden = [*figure.axes, *(text for texts in self._page.words.values() for text in texts)]
        seen = [artist for artist in hidden if artist.get_visible()]
        for artist in seen:
            artist.set_visible(False)
        renderer.clear()
        figure.draw(renderer)
        for artist in seen:
            artist.set_visible(True)
        self._empty = {key: self._canvas.copy_from_bbox(self._page.box(key)) for key in (*self._page.gauges, *self._page.words)}
        return True

    def _paint_words(self, part: str) -> bool:
        texts = self._page.words[part]
        content = [(text.get_text(), text.get_position(), text.get_color()) for text in texts]
        if self._shown.get(part) == content:
            return False
        self._canvas.restore_region(self._empty[part])
        self._draw(texts)
        self._shown[part] = content
        return True

    def _paint_gauge(self, key: Hashable) -> bool:
        ax = self._page.axes(key)
        panel = panel_of(ax)
        if panel is None:  # drawn by something that is no gauge of ours
            self._canvas.restore_region(self._empty[key])
            self._draw([ax])
            return True
        frame, content = panel.frame, (panel.frame, panel.moved)
        if self._shown.get(key) == content:
            return False
        moving = panel.moving
        if key in self._frames and self._frames[key][0] == frame:
            self._canvas.restore_region(self._frames[key][1])
        else:
            self._canvas.restore_region(self._empty[key])
            seen = [artist for artist in moving if artist.get_visible()]
            for artist in seen:
                artist.set_visible(False)
            self._draw([part for part in panel.axes if part.get_visible()])
            for artist in seen:
                artist.set_visible(True)
            self._frames[key] = frame, self._canvas.copy_from_bbox(self._page.box(key))
        self._draw([artist for artist in moving if artist.axes is None or artist.axes.get_visible()])
        self._shown[key] = content
        return True

    def _draw(self, artists: list[Artist] | list[Any]) -> None:
        for artist in artists:
            artist.draw(self._renderer)
