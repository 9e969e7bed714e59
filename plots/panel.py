"""Panel: one axes that a gauge describes anew at every refresh, while only what changed is touched.

A gauge says each time all it wants to show::

    with panel(run, ax, "Gradient norm", scale="log", needs="grad_norm") as p:
        p.line("grad_norm", label="raw")
        p.read(verdict(run))

The panel keeps an artist for each thing said. Said again, it gets the new data; not said any more, it goes away. So a gauge
has no state of its own, a refresh does not rebuild the axes, and a missing reading is told in words in place of curves.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from cockpit_lite.alert import SEVERITIES, Alert
from cockpit_lite.plots import style
from cockpit_lite.plots.artists import Artists
from cockpit_lite.plots.course import Envelope, course
from cockpit_lite.plots.facts import elide, is_running, scalars, why_missing
from cockpit_lite.plots.heat import HeatScale, picture
from cockpit_lite.plots.labels import Spot, Word, free_spot
from cockpit_lite.plots.layers import LayerTable, short_names
from cockpit_lite.plots.limits import value_limits
from cockpit_lite.plots.numbers import LogTicks, ShortLabels, StepLabels, StepTicks, ValueTicks, averaged, decimate, smooth
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

Scale = Literal["linear", "log", "auto"]

#: Above this many points a noisy series gets a smooth curve on top.
SMOOTH_FROM = 60
#: Up to this many points each is drawn as a dot too, so that a single one is seen.
DOTS_UP_TO = 40
#: More alerts than this are not marked one by one: the worst ones are.
MOST_MARKS = 8

#: A panel is kept on its axes, so that it goes when they go.
_ATTRIBUTE = "_cockpit_lite_panel"


@contextmanager
def panel(
    run: Run, ax: Axes, title: str, *, unit: str = "", scale: Scale = "linear", needs: str | Sequence[str] = ()
) -> Iterator[Panel]:
    """Open the panel of ``ax`` for one round of description, and settle limits, marks and legend on leaving.

    Args:
        run: Where the readings come from.
        ax: Of any figure; colours follow the figure's background.
        title: Name of the gauge.
        unit: Unit or symbol, behind the title.
        scale: Of the value axis; ``"auto"`` is logarithmic for positive values that span more than a factor of twenty.
        needs: Reading or readings of which at least one must be there; else the panel says why the first is missing.
    """
    with opened(Panel, run, ax, title, unit=unit, scale=scale, needs=needs) as board:
        yield board


class Panel:
    """See :func:`panel`, which makes them.

    Attributes:
        missing: Whether none of the needed readings is there; the gauge's curves are then empty and nothing has to be said.
    """

    def __init__(self, ax: Axes):
        self.ax = ax
        self.missing = False
        self._theme = style.theme_of(ax.figure)
        self._artists = Artists(ax)
        self._right: Axes | None = None
        self._limits: dict[tuple[Axes, str], tuple[float, float]] = {}
        self._dress(ax)

    # One round ------------------------------------------------------------------------------------------------------

    def begin(self, run: Run, title: str, unit: str, scale: Scale, needs: list[str]) -> None:
        """Start a round: forget what was said in the last one, keep the artists."""
        self.run = run
        self._growing = is_running(run)
        last = max([run.last_step or 0, *(alert.step for alert in run.alerts)])
        self._last_step = _with_room(last) if self._growing else last
        self._scale = scale
        self._artists.begin()
        self._legend: list[tuple[str, str, str]] = []
        self._extent: dict[str, list[np.ndarray]] = {"left": [], "right": []}
        self._wishes: list[float] = []
        self._broken: list[np.ndarray] = []
        self._below: list[np.ndarray] = []
        self._spans: list[tuple[float, float]] = []
        self._limit_labels: list[tuple[str, str, np.ndarray, np.ndarray, str]] = []
        self._rows = 0  # of a heat map
        self._gutter = 0.015  # beside it, for the names of its rows, as a share of the steps
        self.missing = bool(needs) and not any(self._is_there(run, name) for name in needs)
        self._title, self._unit = title, unit
        if self.missing:
            self._explain(f"not measured, because {why_missing(run, needs[0])}")

    def end(self) -> None:
        """End a round: settle scale and limits, mark alerts and NaN, drop what was not said again."""
        self._settle_steps()
        self._settle_values()
        box = self.ax.bbox
        #: Where names of marks and limits would cover something: title and legend, and names that are there.
        self._taken = [Bbox.from_extents(box.x0, box.y1 + 2, box.x1, box.y1 + box.height)]
        self._mark_broken()
        self._mark_alerts()
        self._label_limits()
        self._write_title()
        self._artists.end()
        self.ax.xaxis.set_visible(not self.missing)
        self.ax.yaxis.set_visible(not self.missing and not self._rows)
        self.ax.spines["bottom"].set_visible(not self.missing)
        if self._right is not None:
            self._right.set_visible(bool(self._extent["right"]))

    def _write_title(self) -> None:
        """Write title and unit to the left above the axes, the legend to the right; the unit gives way where there is no room."""
        legend = _shorten(self._legend)
        if legend:
            groups = [  # the label in text colour: not every series colour can be read
                [Word(swatch, colour, style.LEGEND_SIZE, "bold"), Word(label, self._theme.muted, style.LEGEND_SIZE)]
                for swatch, label, colour in legend
            ]
            self._artists.words("legend", "lower right", groups, up=5, frame=True)
        # In inches: letters of a title are about 0.068 wide, of a legend 0.055, a swatch with the space around it 0.22.
        title, letter = 0.068 * style.breadth(), 0.055 * style.breadth()
        taken = title * len(self._title) + sum(letter * len(label) + 0.22 for _, label, _ in legend)
        room = self.ax.get_window_extent().width / self.ax.figure.dpi - taken
        words = [Word(self._title, self._theme.text, style.TITLE_SIZE, "bold")]
        if self._unit and (not legend or letter * len(self._unit) + 0.1 < room):
            words.append(Word(self._unit, self._theme.muted, style.LEGEND_SIZE))
        self._artists.words("title", "lower left", [words], up=5, frame=True)

    # What a gauge can say -------------------------------------------------------------------------------------------

    def line(
        self,
        name: str,
        *,
        label: str | None = None,
        colour: int = 0,
        dashed: bool = False,
        right: bool = False,
        smoothed: bool = True,
    ) -> None:
        """Draw a reading, if it was measured; a long one faintly, with its smooth course on top.

        Args:
            name: The reading.
            label: In the legend; None: no entry.
            colour: Index into the theme's series colours.
            dashed: Dashed instead of solid.
            right: On the right axis.
            smoothed: Whether noise is to be expected.
        """
        steps, values = scalars(self.run, name)
        if len(steps):
            long = course(self.run, name)
            self.curve(
                name,
                steps,
                values,
                label=label,
                colour=colour,
                dashed=dashed,
                right=right,
                smoothed=smoothed,
                envelope=None if long is None else long.envelope,
            )

    def curve(
        self,
        key: str,
        steps: np.ndarray,
        values: np.ndarray,
        *,
        label: str | None = None,
        colour: int = 0,
        dashed: bool = False,
        right: bool = False,
        smoothed: bool = False,
        envelope: Envelope | None = None,
    ) -> None:
        """Draw any series; the parameters are those of :meth:`line`. ``envelope``: of the longer one that it is a sample of."""
        shade = self._theme.series[colour % len(self._theme.series)]
        side = "right" if right else "left"
        log = not right and self._is_log([values] if envelope is None else [envelope.low, envelope.high])
        usable = np.isfinite(values) & (values > 0) if log else np.isfinite(values)
        drawn = np.where(usable, values, np.nan)
        if envelope is None:
            self._extent[side].append(drawn[usable])
            self._broken.append(steps[~np.isfinite(values)])
            below = steps[np.isfinite(values) & (values <= 0)]
        else:
            envelope = envelope.joined(math.ceil(len(envelope.first) / self._pixels()))
            self._extent[side] += [values[np.isfinite(values)] for values in envelope.ends(log)]
            self._broken.append(envelope.broken[envelope.broken >= 0])
            below = envelope.below[envelope.below >= 0]
        if log:
            self._below.append(below)
        smoothed = smoothed and len(steps) >= SMOOTH_FROM
        ax = self._right_axes() if right else self.ax
        look: dict[str, Any] = {"color": shade, "linestyle": (0, (4, 2)) if dashed else "-", "solid_capstyle": "round"}
        look |= {"linewidth": style.LINE_WIDTH, "zorder": 4, "marker": "o" if len(steps) <= DOTS_UP_TO else "", "markersize": 3.4}
        if smoothed:
            # Averages first: a mean over a fortieth of the axis does not show more, and is there much sooner.
            coarse_steps, coarse = averaged(steps, drawn, 2 * self._pixels(), log)
            self._artists.line(("smooth", key), ax, coarse_steps, smooth(coarse, log), look)
            look = look | {"linewidth": style.FAINT_WIDTH, "alpha": 0.35, "zorder": 3}
        else:
            look["alpha"] = 1.0
        if envelope is None:
            self._artists.line(("curve", key), ax, *decimate(steps, drawn), look)
        else:
            # A line that goes up and down at every pixel takes ten times as long to draw.
            area = {"facecolor": shade, "alpha": 0.8 * look["alpha"], "linewidth": 0, "zorder": look["zorder"]}
            self._artists.band(("course", key), ax, *envelope.bars(log), **area)
            if not smoothed:
                self._artists.line(("curve", key), ax, *envelope.middle(log), look)
        if label is not None:
            self._legend.append(("╍" if dashed else "━", label, shade))

    def band(
        self, key: str, steps: np.ndarray, low: np.ndarray, high: np.ndarray, *, label: str | None = None, colour: int = 0
    ) -> None:
        """Shade between two series, such as the least and the greatest layer or an estimate's error."""
        shade = self._theme.series[colour % len(self._theme.series)]
        if self._is_log([low, high]):
            low, high = np.where(low > 0, low, np.nan), np.where(high > 0, high, np.nan)
        self._extent["left"] += [low[np.isfinite(low)], high[np.isfinite(high)]]
        low_steps, low = decimate(steps, low, 2 * self._pixels())
        high = decimate(steps, high, 2 * self._pixels())[1]
        self._artists.band(("band", key), self.ax, low_steps, low, high, facecolor=shade, alpha=0.16, linewidth=0, zorder=2)
        if label is not None:
            self._legend.append(("■", label, style.mix(shade, self._theme.card, 0.3)))

    def healthy(self, low: float, high: float) -> None:
        """Shade the healthy range of values; infinite ends reach to the edge."""
        self._spans.append((low, high))
        self._wishes += [value for value in (low, high) if math.isfinite(value)]

    def limit(self, key: str, steps: np.ndarray, values: np.ndarray, label: str) -> None:
        """Draw where trouble begins, as a dashed line with its name in the legend."""
        finite = np.isfinite(values)
        if finite.any():
            self._wishes += [float(np.nanmin(values[finite])), float(np.nanmax(values[finite]))]
            shade = self._theme.trouble
            if len(steps) == 1:  # a limit holds all along, even if known at one step
                steps, values = np.array([0, max(1, self._last_step)]), np.repeat(values, 2)
            look = {"color": shade, "linestyle": (0, (5, 2.5)), "linewidth": 1.2, "zorder": 3.5}
            self._artists.line(("limit", key), self.ax, *decimate(steps, values, self._pixels()), look)
            self._limit_labels.append((key, label, steps, values, shade))

    def level(self, key: str, value: float, label: str, trouble: bool = True) -> None:
        """Draw one fixed value all along: a limit, or with ``trouble=False`` a reference."""
        if trouble:
            self.limit(key, np.array([0]), np.array([value]), label)
        else:
            self._wishes.append(value)
            ends = np.array([0, max(1, self._last_step)])
            look = {"color": self._theme.muted, "linestyle": (0, (2, 2)), "linewidth": 1.0, "zorder": 2.5}
            self._artists.line(("level", key), self.ax, ends, np.array([value, value]), look, frame=True)
            self._limit_labels.append((key, label, ends, np.array([value, value]), self._theme.muted))

    def heat(self, table: LayerTable, scale: HeatScale) -> None:
        """Draw a layerwise reading as a heat map, layers by steps, in place of curves; the legend explains the colours."""
        last = max(1, self._last_step)
        image, starts = picture(table, scale, last, self._theme)
        self._rows = len(starts)
        self._artists.image("heat", image, (0.0, float(last), self._rows - 0.5, -0.5), zorder=1.0)
        self._legend += [("■", label, colour) for label, colour in scale.swatches(self._theme)]
        self._broken.append(table.steps[(table.known & ~np.isfinite(table.values)).any(axis=0)])
        self._name_rows([table.names[start] for start in starts])

    def _name_rows(self, names: list[str]) -> None:
        """Write the names of as many rows as there is room for to the left of step 0."""
        box = self.ax.get_window_extent()
        dots = self.ax.figure.dpi
        room = max(2, int(box.height / dots / 0.15))
        labels = short_names(names)
        letters = max(map(len, labels))
        # A letter is about 0.055 inches wide; half an inch is there anyway, where other gauges have their numbers.
        self._gutter = min(max(0.015, (0.055 * style.breadth() * letters - 0.42) / max(box.width / dots, 0.5)), 0.3)
        for row in range(0, len(labels), math.ceil(len(labels) / room)):
            self._artists.note(
                ("row", row),
                labels[row],
                (0.0, float(row)),
                self.ax.transData,
                (-4, 0),
                color=self._theme.muted,
                size=style.MARK_SIZE,
                ha="right",
                va="center",
            )

    def read(self, verdict: Verdict | None) -> None:
        """Say in one line under the gauge what it shows."""
        if verdict is None or self.missing:
            return
        letters = min(68, max(24, int(18 * self.ax.get_window_extent().width / self.ax.figure.dpi)))
        words = [Word(elide(verdict.text, letters), self._theme.text, style.VERDICT_SIZE)]
        if style.SYMBOLS[verdict.health]:
            colour = style.health_colour(self._theme, verdict.health)
            words.insert(0, Word(style.SYMBOLS[verdict.health], colour, style.VERDICT_SIZE))
        self._artists.words("verdict", "upper left", [words], up=-21)

    def _is_there(self, run: Run, name: str) -> bool:
        """Return whether the run has a reading that can be drawn."""
        return bool(len(scalars(run, name)[0]))

    # Settling a round -----------------------------------------------------------------------------------------------

    def _settle_steps(self) -> None:
        last = max(1, self._last_step)
        self._set_limits(self.ax, "x", (-self._gutter * last, 1.015 * last))

    def _settle_values(self) -> None:
        if self._rows:
            self.ax.set_yscale("linear")
            self._set_limits(self.ax, "y", (self._rows - 0.5, -0.5))
            return
        log = self._is_log(self._extent["left"])
        if (self.ax.get_yscale() == "log") != log:
            self.ax.set_yscale("log" if log else "linear")
            self.ax.yaxis.set_minor_locator(NullLocator())
            self._dress_values(self.ax, log)
        self._set_limits(self.ax, "y", self._keep_values(self.ax, value_limits(self._extent["left"], self._wishes, log), log))
        if self._right is not None and self._extent["right"]:
            wanted = value_limits(self._extent["right"], [], False)
            self._set_limits(self._right, "y", self._keep_values(self._right, wanted, False))
        bottom, top = self.ax.get_ylim()
        for number, (low, high) in enumerate(self._spans):
            ends = max(low, bottom), min(high, top)
            if ends[0] < ends[1]:
                look = {"color": self._theme.healthy, "alpha": 0.10, "linewidth": 0, "zorder": 0.5}
                self._artists.span(
                    ("healthy", number), (0.0, ends[0]), 1.0, ends[1] - ends[0], self.ax.get_yaxis_transform(), **look
                )

    def _label_limits(self) -> None:
        """Name each limit at the last of its points inside the view, on the side where there is room."""
        bottom, top = self.ax.get_ylim()
        for key, label, steps, values, colour in self._limit_labels:
            visible = np.flatnonzero((values >= bottom) & (values <= top))
            if len(visible):
                at = (float(steps[visible[-1]]), float(values[visible[-1]]))
                height = self.ax.transLimits.transform(self.ax.transScale.transform(at))[1]
                below, at_left = height > 0.5, at[0] < 0.3 * self._last_step
                first = (float(steps[visible[0]]), float(values[visible[0]]))
                ends = [(at, "left" if at_left else "right"), (first, "left")]
                sides = [*[((0.0, -3.0), "top"), ((0.0, 3.0), "bottom")][:: 1 if below else -1], ((0.0, -12.0), "top")]
                spots = [Spot(end, self.ax.transData, offset, ha, va) for end, ha in ends for offset, va in sides]
                self._put_name(("limit label", key), Word(label, colour, style.MARK_SIZE), spots)

    def _put_name(self, key: Any, word: Word, spots: Sequence[Spot]) -> None:
        """Write the name of a mark or a limit where it covers no other."""
        spot = free_spot(word, spots, self._taken, self.ax.figure.dpi / 72)
        self._artists.note(
            key,
            word.text,
            spot.at,
            spot.transform,
            spot.offset,
            color=word.colour,
            size=word.size,
            weight=word.weight,
            ha=spot.ha,
            va=spot.va,
            background=self._theme.card,
        )

    def _mark_broken(self) -> None:
        for key, found, height, marker, colour, word in (
            ("broken", self._broken, 0.93, "x", self._theme.trouble, "NaN or Inf"),
            ("below", self._below, 0.17, "v", self._theme.muted, "zero or less"),
        ):
            steps = np.unique(np.concatenate(found)) if found else np.array([])
            if len(steps):
                steps = _spaced(steps, self._last_step / 40)
                transform = self.ax.get_xaxis_transform()
                look = {"transform": transform, "linestyle": "", "marker": marker, "markersize": 4.5, "markeredgewidth": 1.3}
                look |= {"color": colour, "zorder": 6, "clip_on": False}
                self._artists.line(("marks", key), self.ax, steps, np.full(len(steps), height), look)
                ends = transform.transform([(steps[0], height), (steps[-1], height)])
                self._taken.append(Bbox(ends).padded(3.0 * self.ax.figure.dpi / 72))
                at = (float(steps[0]), height)
                before, behind = (
                    Spot((float(steps[end]), height), transform, (offset, 0.0), ha, "center")
                    for end, offset, ha in ((0, -7.0, "right"), (-1, 7.0, "left"))
                )
                under = Spot(at, transform, (0.0, -6.0), "left", "top")
                at_end = steps[0] > 0.8 * self._last_step
                self._put_name(
                    ("mark label", key),
                    Word(word, colour, style.MARK_SIZE, "bold"),
                    [before] if at_end else [under, behind],
                )

    def _mark_alerts(self) -> None:
        if self.missing:
            return
        left, right = self.ax.get_xlim()
        labelled: list[float] = []
        for rank, (step, alerts) in enumerate(_marks(self.run.alerts)):
            severity = alerts[0].severity
            colour = style.severity_colour(self._theme, severity)
            if rank == 0 and severity != "note":  # where trouble begins: all that follows is tinted
                tint = {"color": colour, "alpha": 0.05, "linewidth": 0, "zorder": 0.4}
                self._artists.span("trouble", (step, 0.0), right - step, 1.0, self.ax.get_xaxis_transform(), **tint)
            transform = self.ax.get_xaxis_transform()
            look = {"transform": transform, "color": colour, "linestyle": style.SEVERITY_LINES[severity], "linewidth": 1.1}
            look |= {"zorder": 1.5, "alpha": 0.85}  # behind the curves
            self._artists.line(("alert", step), self.ax, np.array([step, step]), np.array([0.0, 1.0]), look, frame=True)
            if all(abs(step - other) > 0.13 * (right - left) for other in labelled):
                labelled.append(step)
                text = alerts[0].code + (f" +{len(alerts) - 1}" if len(alerts) > 1 else "")
                at_end = step > left + 0.85 * (right - left)
                side = -1 if at_end else 1
                spots = [
                    Spot((step, 0.0), transform, (3.0 * side, up), "right" if at_end else "left", "bottom")
                    for up in (3.0, 13.0, 23.0)
                ]
                self._put_name(("code", step), Word(text, colour, style.MARK_SIZE, "bold"), spots)

    def _explain(self, text: str) -> None:
        self._artists.note(
            "missing",
            textwrap.fill(text, 46),
            (0.5, 0.5),
            self.ax.transAxes,
            (0, 0),
            color=self._theme.muted,
            size=style.VERDICT_SIZE,
            ha="center",
            va="center",
        )

    # Painting -------------------------------------------------------------------------------------------------------

    @property
    def frame(self) -> tuple[Any, ...]:
        """What the frame depends on: as long as it is the same, the frame looks the same."""
        return (
            self._artists.frame,
            *((*ax.viewLim.get_points().ravel().tolist(), ax.get_yscale(), ax.get_visible()) for ax in self.axes),
            *(part.get_visible() for part in (self.ax.xaxis, self.ax.yaxis, self.ax.spines["bottom"])),
        )

    @property
    def moved(self) -> int:
        """Changes whenever what is painted over the frame has changed."""
        return self._artists.moved

    @property
    def moving(self) -> list[Artist]:
        """What is painted over the frame, from back to front."""
        return self._artists.moving

    @property
    def axes(self) -> list[Axes]:
        """Its axes, the one on the right last."""
        return [self.ax] if self._right is None else [self.ax, self._right]

    # Axes -----------------------------------------------------------------------------------------------------------

    def _pixels(self) -> int:
        """Return how many pixels wide the axes is."""
        return max(100, int(self.ax.bbox.width))

    def _is_log(self, found: list[np.ndarray]) -> bool:
        if self._scale != "auto":
            return self._scale == "log"
        finite = [values[np.isfinite(values)] for values in found]
        finite = [values for values in finite if len(values)]
        if not finite:
            return False
        low, high = min(values.min() for values in finite), max(values.max() for values in finite)
        return bool(low > 0 and high / low > 20)

    def _right_axes(self) -> Axes:
        if self._right is None:
            self._right = self.ax.twinx()
            self._dress(self._right)
            self._right.set_zorder(self.ax.get_zorder() + 1)
            self._right.patch.set_visible(False)
        return self._right

    def _dress(self, ax: Axes) -> None:
        ax.set_facecolor("none")
        for spine in ("top", "right", "left"):
            ax.spines[spine].set_visible(False)
        ax.spines["bottom"].set_color(self._theme.edge)
        ax.tick_params(
            length=0, labelsize=style.TICK_SIZE, labelcolor=self._theme.muted, pad=3, labelfontfamily=style.font_family()
        )
        ax.xaxis.set_major_locator(StepTicks())
        ax.xaxis.set_major_formatter(StepLabels())
        self._dress_values(ax, log=False)
        if ax is self.ax:
            ax.grid(True, axis="y", color=self._theme.grid, linewidth=style.HAIR_WIDTH)
            ax.set_axisbelow(True)

    def _dress_values(self, ax: Axes, log: bool) -> None:
        ax.yaxis.set_major_locator(LogTicks() if log else ValueTicks())
        ax.yaxis.set_major_formatter(ShortLabels())
        ax.yaxis.set_minor_formatter(NullFormatter())

    def _set_limits(self, ax: Axes, direction: Literal["x", "y"], wanted: tuple[float, float]) -> None:
        """Set limits, unless a person has zoomed since: then the view is theirs."""
        get, put = (ax.get_xlim, ax.set_xlim) if direction == "x" else (ax.get_ylim, ax.set_ylim)
        ours = self._limits.get((ax, direction))
        if ours is None or (
            wanted != ours and all(math.isclose(now, then, rel_tol=1e-9) for now, then in zip(get(), ours, strict=True))
        ):
            put(*wanted)
            low, high = get()
            self._limits[ax, direction] = float(low), float(high)

    def _keep_values(self, ax: Axes, wanted: tuple[float, float], log: bool) -> tuple[float, float]:
        """Return the limits of now in place of the wanted ones while a run grows and they still serve: nothing then moves."""
        ours = self._limits.get((ax, "y"))
        if not self._growing or ours is None or (log and not min(ours) > 0):
            return wanted
        (low, high), (bottom, top) = np.log([wanted, ours]) if log else np.array([wanted, ours])
        # The limits leave a margin around the data, half of which may be used up.
        slack = 0.03 * (top - bottom)
        return ours if bottom - slack <= low and high <= top + slack and high - low > 0.8 * (top - bottom) else wanted


Kind = TypeVar("Kind", bound=Panel)


def panel_of(ax: Axes) -> Panel | None:
    """Return the panel of an axes on which a gauge was drawn."""
    return getattr(ax, _ATTRIBUTE, None)


def _with_room(last: int) -> int:
    """Return the step at which the axis of a growing run ends: a little after the last one, so that it moves now and then only.

    >>> _with_room(7), _with_room(100), _with_room(1_000), _with_room(1_000_000)
    (7, 104, 1024, 1048576)
    """
    unit = 1 << max(0, last.bit_length() - 4)
    return -(-last // unit) * unit


@contextmanager
def opened(
    kind: type[Kind], run: Run, ax: Axes, title: str, *, unit: str = "", scale: Scale = "linear", needs: str | Sequence[str] = ()
) -> Iterator[Kind]:
    """Open a panel as :func:`panel` does, of a kind that draws other pictures than curves over the steps."""
    board = getattr(ax, _ATTRIBUTE, None)
    if type(board) is not kind:
        if board is not None:
            ax.clear()
        board = kind(ax)
        setattr(ax, _ATTRIBUTE, board)
    # Runs that blow up are what people look at gauges for: the largest numbers there are must not raise in turn.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        board.begin(run, title, unit, scale, [needs] if isinstance(needs, str) else list(needs))
        yield board
        board.end()


def _marks(alerts: Sequence[Alert]) -> list[tuple[int, list[Alert]]]:
    """Return (step, its alerts, worst first) of the worst alerts, worst and earliest first."""
    steps: dict[int, list[Alert]] = {}
    for alert in sorted(alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.step)):
        steps.setdefault(alert.step, []).append(alert)
    return list(steps.items())[:MOST_MARKS]


def _spaced(steps: np.ndarray, distance: float) -> np.ndarray:
    """Return the first step and those at least ``distance`` after the one kept before, so that marks do not merge into a bar."""
    kept: list[float] = []
    for step in steps if len(steps) < 10_000 else steps[:: len(steps) // 5_000]:
        if not kept or step - kept[-1] >= distance:
            kept.append(float(step))
    return np.array(kept)


def _shorten(legend: list[tuple[str, str, str]], most: int = 4, length: int = 24) -> list[tuple[str, str, str]]:
    entries = [(swatch, elide(label, length if len(legend) < most else length // 2), colour) for swatch, label, colour in legend]
    return entries if len(entries) <= most else [*entries[: most - 1], ("", f"+{len(entries) - most + 1}", legend[-1][2])]
