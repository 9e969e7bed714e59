"""A page of gauges: in columns, under a header with the run's state; on the cockpit page the loss below, alerts beside it."""

from __future__ import annotations

import io
import itertools
import os
import textwrap
import warnings
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from cockpit_lite.alert import SEVERITIES
from cockpit_lite.plots import style
from cockpit_lite.plots.facts import cost, described, elide, is_running, measuring_share
from cockpit_lite.plots.layout import OVERVIEW, Gauge, Layout
from cockpit_lite.run import Run

#: Inches; at 100 dots an inch this is a laptop's 1440 x 900.
PAGE_SIZE = (14.4, 9.0)

# Inches, whatever the size of the page: type does not shrink with the window either.
_MARGIN = 0.22
_GAP = 0.14
_HEADER = 0.78
_HEADING = 0.24
_LEFT, _RIGHT, _ABOVE, _BELOW = 0.56, 0.20, 0.34, 0.46  # room inside a card for labels, title, and verdict
_RIGHT_AXIS = 0.28  # more room in the wide card, whose gauge may have a second axis
_ALERTS_WIDTH = 1.0  # in columns
_FEWEST_CARDS = 3  # in a row, and in a column, as far as their size goes
_LINE = 0.165  # of the alerts' text
_HEADER_TEXTS = ("model", "facts", "health", "first")
_LETTERS_AN_INCH = 15.5  # of the same, on average


class Page:
    """A figure that shows a run. It can be updated as the run grows.

    Args:
        theme: ``"light"`` or ``"dark"``.
        layout: Which gauges.
        figure: To draw on; by default one of its own, outside of pyplot, so that the user's figures stay untouched.
    """

    def __init__(self, theme: str = "light", layout: Layout = OVERVIEW, figure: Figure | None = None):
        self.layout = layout
        if figure is None:
            figure = Figure(figsize=PAGE_SIZE, dpi=100)
            FigureCanvasAgg(figure)
        self.figure = figure
        self.state: str | None = None
        self._theme = style.THEMES[theme]
        figure.set_facecolor(self._theme.page)
        figure.set_layout_engine("none")
        self._cards: dict[Any, FancyBboxPatch] = {}
        self._axes: dict[Any, Axes] = {}
        self._texts: dict[Any, Text] = {}
        self._alerts_shown: tuple[Any, ...] | None = None
        self._size: tuple[float, float] | None = None
        self._last: tuple[Run, str | None] | None = None
        #: Key of each card with a gauge -> the gauge.
        self.gauges: dict[Hashable, Gauge] = {
            (column, row): gauge for column, (_, gauges) in enumerate(layout.columns) for row, gauge in enumerate(gauges)
        }
        if layout.wide is not None:
            self.gauges["wide"] = layout.wide
        self.place()
        figure.canvas.mpl_connect("resize_event", lambda _event: self._fit())

    def update(self, run: Run, state: str | None = None) -> None:
        """Show the run as it stands now.

        Args:
            run: The run; call its ``refresh`` before.
            state: Overrides what the run says of itself, such as "interrupted".
        """
        self.place()
        for key in self.gauges:
            self.show(key, run)
        self.write(run, state)

    def show(self, key: Hashable, run: Run) -> None:
        """Bring one gauge up to date; its key is one of :attr:`gauges`."""
        self.gauges[key](run, self._axes[key])

    def write(self, run: Run, state: str | None = None) -> None:
        """Bring header and list of alerts up to date."""
        self._last = (run, state)
        self._write_header(run, state)
        self._write_alerts(run)

    def axes(self, key: Hashable) -> Axes:
        """Return the axes of a gauge."""
        return self._axes[key]

    @property
    def words(self) -> dict[str, list[Text]]:
        """The texts that change as the run grows, by the part of the page they are in."""
        found: dict[str, list[Text]] = {"header": [self._texts[key] for key in _HEADER_TEXTS if key in self._texts]}
        if "alerts" in self._cards:
            found["alerts"] = [text for key, text in self._texts.items() if isinstance(key, tuple) and key[0] == "alert"]
        return found

    def box(self, key: Hashable) -> Bbox:
        """Return where a gauge or a part with words is, in pixels."""
        width, height = self._size or PAGE_SIZE
        if key == "header":
            inches = Bbox.from_extents(0.0, height - _HEADER, width, height)
        else:
            # One pixel more than the outline of the card, which has a width.
            inches = Bbox(self._cards[key].get_path().get_extents().get_points()).padded(0.02)
        dots = self.figure.dpi
        low, high = np.floor(inches.p0 * dots), np.ceil(inches.p1 * dots)
        return Bbox.from_extents(*np.maximum(low, 0), *np.minimum(high, [width * dots, height * dots]))

    def png(self, dpi: int = 150) -> bytes:
        """Return the page as a PNG picture."""
        buffer = io.BytesIO()
        with missing_glyphs_are_fine():
            # Half of the time of level 6 for up to a fifth more bytes: this is what a user waits for on leaving the block.
            self.figure.savefig(
                buffer, format="png", dpi=dpi, facecolor=self.figure.get_facecolor(), pil_kwargs={"compress_level": 3}
            )
        return buffer.getvalue()

    def save(self, target: str | os.PathLike[str] | BinaryIO, dpi: int = 150) -> None:
        """Write the page as a PNG picture: to a path, replaced at once so that nobody sees half of it, or to an open file."""
        if not isinstance(target, (str, os.PathLike)):
            target.write(self.png(dpi))
            return
        replace_file(Path(target), self.png(dpi))

    def _fit(self) -> None:
        """Fit the page to a new size of the window."""
        self.place()
        if self._last is not None:
            run, state = self._last
            self._write_header(run, state)
            self._write_alerts(run)

    # Placing --------------------------------------------------------------------------------------------------------

    def place(self) -> None:
        """Put cards, axes and headings where they belong at the present size; do nothing if it has not changed."""
        size = tuple(self.figure.get_size_inches())
        if size == self._size:
            return
        self._size = (float(size[0]), float(size[1]))
        width, height = self._size
        columns, rows = len(self.layout.columns), max(len(gauges) for _, gauges in self.layout.columns)
        # A page of few gauges does not blow them up.
        count, rows = max(columns, _FEWEST_CARDS), max(rows + (self.layout.wide is not None), _FEWEST_CARDS)
        card_width = (width - 2 * _MARGIN - (count - 1) * _GAP) / count
        card_height = (height - _HEADER - _HEADING - _MARGIN - (rows - 1) * _GAP) / rows
        for column, (heading, gauges) in enumerate(self.layout.columns):
            left = _MARGIN + column * (card_width + _GAP)
            self._write(
                ("heading", column),
                left + 0.04,
                height - _HEADER - 0.13,
                heading,
                size=style.COLUMN_SIZE,
                weight="bold",
                color=self._theme.muted,
                va="center",
            )
            for row in range(len(gauges)):
                bottom = height - _HEADER - _HEADING - (row + 1) * card_height - row * _GAP
                self._place_card((column, row), left, bottom, card_width, card_height)
        self._alerts_shown = None
        if self.layout.wide is None:
            return
        alerts_width = _ALERTS_WIDTH * card_width
        self._place_card("wide", _MARGIN, _MARGIN, width - 2 * _MARGIN - _GAP - alerts_width, card_height)
        self._place_card("alerts", width - _MARGIN - alerts_width, _MARGIN, alerts_width, card_height, axes=False)
        self._alerts_box = (width - _MARGIN - alerts_width, _MARGIN, alerts_width, card_height)

    def _place_card(self, key: Any, left: float, bottom: float, card_width: float, card_height: float, axes: bool = True) -> None:
        if key in self._cards:
            self._cards.pop(key).remove()
        card = FancyBboxPatch(
            (left, bottom),
            card_width,
            card_height,
            boxstyle="round,pad=0,rounding_size=0.07",
            transform=self.figure.dpi_scale_trans,
            facecolor=self._theme.card,
            edgecolor=self._theme.edge,
            linewidth=style.HAIR_WIDTH,
            zorder=-1,
        )
        self._cards[key] = card
        self.figure.add_artist(card)
        if axes:
            width, height = self._size or PAGE_SIZE
            right = _RIGHT + (_RIGHT_AXIS if key == "wide" else 0.0)
            box = (
                (left + _LEFT) / width,
                (bottom + _BELOW) / height,
                max(card_width - _LEFT - right, 0.1) / width,
                max(card_height - _ABOVE - _BELOW, 0.1) / height,
            )
            if key in self._axes:
                self._axes[key].set_position(box)
            else:
                self._axes[key] = self.figure.add_axes(box)

    # Words ----------------------------------------------------------------------------------------------------------

    def _write(self, key: Any, left: float, bottom: float, text: str, **options: Any) -> Text:
        """Put text at a place in inches; a second call with the same key moves and changes it."""
        if key not in self._texts:
            words = self.figure.text(
                0, 0, "", transform=self.figure.dpi_scale_trans, family=style.font_family(), parse_math=False
            )
            self._texts[key] = words
        words = self._texts[key]
        words.set(x=left, y=bottom, text=text, **options)
        return words

    def _write_header(self, run: Run, state: str | None) -> None:
        width, height = self._size or PAGE_SIZE
        model = described(run.info.get("model")) or run.folder.name
        status = state or ("running" if is_running(run) else str(run.info["status"]))
        self.state = status
        steps = "no step yet" if run.last_step is None else f"step {run.last_step:,}"
        facts = [elide(described(run.info.get("optimizer")), 40), status, steps, _duration(run.seconds)]
        if len(run.ranks) > 1:
            facts.append(f"rank {run.rank} of {len(run.ranks)}")
        share = measuring_share(run)
        if share is not None:
            facts.append(cost(share))
        facts.append(elide(run.folder.name, 50))
        room = int(15 * (width - 4.8))
        self._write(
            "model",
            _MARGIN + 0.04,
            height - 0.34,
            elide(model, 64),
            size=style.HEADLINE_SIZE,
            weight="bold",
            color=self._theme.text,
            va="center",
        )
        line = "  ·  ".join(filter(None, facts))
        self._write(
            "facts",
            _MARGIN + 0.05,
            height - 0.62,
            elide(line, room),
            size=style.SUBLINE_SIZE,
            color=self._theme.muted,
            va="center",
        )
        counts = {severity: sum(alert.severity == severity for alert in run.alerts) for severity in SEVERITIES}
        words = [f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count]
        worst = next((severity for severity in SEVERITIES if counts[severity]), None)
        if worst is None:
            text, colour = "no alerts", self._theme.muted if run.last_step is None else self._theme.healthy
        else:
            text, colour = ", ".join(words), style.severity_colour(self._theme, worst)
        self._write(
            "health",
            width - _MARGIN - 0.04,
            height - 0.34,
            text,
            size=style.HEADLINE_SIZE - 2,
            weight="bold",
            color=colour,
            ha="right",
            va="center",
        )
        first = min((alert for alert in run.alerts if alert.severity == worst), key=lambda alert: alert.step, default=None)
        self._write(
            "first",
            width - _MARGIN - 0.04,
            height - 0.62,
            f"first: {first.name} at step {first.step:,}" if first else "",
            size=style.SUBLINE_SIZE,
            color=self._theme.muted,
            ha="right",
            va="center",
        )

    def _write_alerts(self, run: Run) -> None:
        if self.layout.wide is None:
            return
        shown = tuple((alert.code, alert.step) for alert in run.alerts)
        state = (shown, run.last_step is None)
        if state == self._alerts_shown:
            return
        self._alerts_shown = state
        for key in [key for key in self._texts if isinstance(key, tuple) and key[0] == "alert"]:
            self._texts.pop(key).remove()
        left, bottom, width, height = self._alerts_box
        left, top = left + 0.2, bottom + height - 0.22
        self._write(
            ("alert", "title"), left, top, "Alerts", size=style.TITLE_SIZE, weight="bold", color=self._theme.text, va="center"
        )
        if not run.alerts:
            text = "Nothing to look at yet." if run.last_step is None else "Nothing found so far."
            self._write(("alert", "none"), left, top - 0.32, text, size=style.VERDICT_SIZE, color=self._theme.muted, va="center")
            return
        alerts = sorted(run.alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.step))
        columns = max(20, int((width - 0.4) * _LETTERS_AN_INCH))
        causes = [_wrap(alert.cause, columns, 3 if len(alerts) == 1 else 2) for alert in alerts]
        if len(alerts) == 1:  # then there is room for what to do about it
            causes[0] += _wrap(f"→ {alerts[0].advice}", columns, 2)
        place = top - 0.30
        room = place - bottom - 0.08
        fitting = _how_many_fit([_LINE * (1 + len(lines)) + _LINE / 2 for lines in causes], room, _LINE)
        for number, (alert, lines) in enumerate(zip(alerts[:fitting], causes[:fitting], strict=True)):
            symbol = {"error": "■", "warning": "▲"}.get(alert.severity, "●")
            title = elide(f"{symbol} {alert.code} {alert.name}, step {alert.step:,}", columns)
            colour = style.severity_colour(self._theme, alert.severity)
            look = {"size": style.VERDICT_SIZE, "va": "center"}
            self._write(("alert", number), left, place, title, weight="bold", color=colour, **look)
            for index, line in enumerate(lines, start=1):
                self._write(("alert", number, index), left, place - _LINE * index, line, color=self._theme.text, **look)
            place -= _LINE * (1 + len(lines)) + _LINE / 2
        if fitting < len(alerts):
            text = f"and {len(alerts) - fitting} more" if fitting else f"{len(alerts)}, too many for this window"
            self._write(("alert", "more"), left, place, text, size=style.VERDICT_SIZE, color=self._theme.muted, va="center")


def save_page(run: Run, path: str | os.PathLike[str], theme: str = "light", dpi: int = 150, layout: Layout = OVERVIEW) -> None:
    """Write the cockpit page of a run, or another layout of gauges, as a PNG picture."""
    page = Page(theme, layout)
    page.update(run)
    page.save(path, dpi)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file at once, so that nobody sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _wrap(text: str, columns: int, lines: int) -> list[str]:
    return textwrap.wrap(text, columns, max_lines=lines, placeholder=" …")


def _how_many_fit(heights: Sequence[float], room: float, rest: float) -> int:
    """Return how many of the blocks fit one below the other, with a line of height ``rest`` left if they are not all.

    >>> _how_many_fit([1.0, 1.0, 1.0], 3.0, 0.5), _how_many_fit([1.0, 1.0, 1.0], 2.6, 0.5), _how_many_fit([4.0], 3.0, 0.5)
    (3, 2, 0)
    """
    ends = list(itertools.accumulate(heights))
    if not ends or ends[-1] <= room:
        return len(ends)
    return sum(end <= room - rest for end in ends)


def _duration(seconds: float) -> str:
    """Return a duration in the two largest units.

    >>> _duration(5.2), _duration(75), _duration(7260)
    ('5 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def missing_glyphs_are_fine() -> Iterator[None]:
    """A name in a script that no installed font knows is drawn as boxes; that is no reason to warn the user about fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
