"""The gauges of a run as pictures in its report: every one on its own, so that a page can lay them out as its width allows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cockpit_lite.plots import style
from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.layout import OVERVIEW, Gauge, Layout, pages
from cockpit_lite.plots.page import Page
from cockpit_lite.report.svg import inline_svg
from cockpit_lite.run import Run

# Inches. The type is made for this size; a page shows it a third larger.
_WIDTH, _HEIGHT = 4.6, 2.3
_WIDE = 14.0  # as three of them with the space between
_LEFT, _RIGHT, _ABOVE, _BELOW = 0.58, 0.2, 0.34, 0.46
_RIGHT_AXIS = 0.28  # more room in the wide one, whose gauge may have a second axis
_ROUNDING = 1e-6  # values that differ by less, relatively, are the same
_DOTS_PER_INCH = 150  # of the PNG: sharp on a screen with more than 96 of them, and well below 1 MB


@dataclass(frozen=True)
class GaugePage:
    """Gauges in columns under a heading each.

    Attributes:
        name: Of the page, such as "gradients"; "overview" is the first.
        columns: Headings and pictures; those of no heading go row by row instead of in a column.
        wide: Below the columns, or None.
    """

    name: str
    columns: tuple[tuple[str, tuple[Markup, ...]], ...]
    wide: Markup | None = None


def gauge_pages(run: Run) -> tuple[GaugePage, ...]:
    """Draw every gauge of the run once: one that is on several pages is shown on the first of them.

    Plain readings that never changed, such as counts of faults that stayed zero, are left to the table of last values.
    """
    drawn: set[Gauge] = set()

    def page(name: str, layout: Layout) -> GaugePage:
        columns = []
        for number, (heading, gauges) in enumerate(layout.columns):
            new = [gauge for gauge in gauges if gauge not in drawn]
            drawn.update(new)
            pictures = tuple(draw_gauge(run, gauge, f"{name}-{number}-{row}") for row, gauge in enumerate(new))
            if pictures:
                columns.append((heading, pictures))
        wide = None if layout.wide is None else draw_gauge(run, layout.wide, f"{name}-wide", wide=True)
        return GaugePage(name, tuple(columns), wide)

    behind = {name: _rest(run, layout) if name.startswith("more") else layout for name, layout in pages(run).items()}
    found = [page("overview", OVERVIEW), *(page(name, layout) for name, layout in behind.items())]
    return tuple(one for one in found if one.columns or one.wide)


def _rest(run: Run, layout: Layout) -> Layout:
    """Return the gauges of a page of all sorts row by row, without those of a single number that never changed."""

    def changes(gauge: Gauge) -> bool:
        name = gauge.__name__
        values = scalars(run, name)[1]
        if run.layers(name) or len(values) < 2 or not np.isfinite(values).all():
            return True
        return bool(np.ptp(values) > _ROUNDING * np.abs(values).max())

    rows = itertools.zip_longest(*(gauges for _, gauges in layout.columns))
    return Layout((("", tuple(gauge for row in rows for gauge in row if gauge is not None and changes(gauge))),))


def overview_png(run: Run) -> bytes:
    """Return the overview as a PNG file; empty where it cannot be drawn, since nothing of a report hangs on it."""
    try:
        page = Page("light", OVERVIEW)
        page.update(run)
        return page.png(_DOTS_PER_INCH)
    except Exception:
        return b""


def draw_gauge(run: Run, gauge: Gauge, key: str, *, wide: bool = False) -> Markup:
    """Draw one gauge; ``key`` tells it apart from the others on the page."""
    figure, ax = blank(wide=wide)
    gauge(run, ax)
    if len(figure.axes) > 1 and not wide:  # there is an axis on the right, whose numbers want room
        for one in figure.axes:
            left, bottom, width, height = one.get_position().bounds
            one.set_position((left, bottom, width - _RIGHT_AXIS / _WIDTH, height))
    return inline_svg(figure, key)


def blank(*, wide: bool = False) -> tuple[Figure, Axes]:
    """Return the empty figure of a gauge, and its axes."""
    width = _WIDE if wide else _WIDTH
    figure = Figure(figsize=(width, _HEIGHT), dpi=72, facecolor=style.LIGHT.card)
    right = _RIGHT + (_RIGHT_AXIS if wide else 0.0)
    box = (_LEFT / width, _BELOW / _HEIGHT, (width - _LEFT - right) / width, (_HEIGHT - _ABOVE - _BELOW) / _HEIGHT)
    return figure, figure.add_axes(box)
