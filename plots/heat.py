"""Heat map of a layerwise reading: layers from top to bottom in network order, steps from left to right, colour for the value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.colors import to_rgb

from cockpit_lite.plots import style
from cockpit_lite.plots.layers import LayerTable
from cockpit_lite.plots.numbers import percent, short

#: More columns or rows than this are never as many pixels: several are then drawn as one, the worst of them.
MOST_COLUMNS, MOST_ROWS = 240, 60


@dataclass(frozen=True)
class HeatScale:
    """How values become colours: pale where all is well, darker towards the limit, of another hue beyond it.

    Attributes:
        low: Value at one end.
        high: Value at the other end.
        log: Whether the scale is logarithmic.
        limit: Where trouble begins, if anywhere.
        bad: Which end of the scale is the worse one; of several values in one pixel it is shown.
        shares: Whether values are shares, written in per cent.
    """

    low: float
    high: float
    log: bool = False
    limit: float | None = None
    bad: Literal["high", "low"] = "high"
    shares: bool = False

    def colours(self, values: np.ndarray, theme: style.Theme) -> np.ndarray:
        """Return red, green, blue of each value, between 0 and 1; whatever of a NaN."""
        places = self._badness(values)
        limit = 1.0 if self.limit is None else float(self._badness(np.array(self.limit)))
        pale, deep = np.array(to_rgb(style.mix(theme.series[0], theme.card, 0.10))), np.array(to_rgb(theme.series[0]))
        mild, worst = np.array(to_rgb(style.mix(theme.trouble, theme.card, 0.6))), np.array(to_rgb(theme.trouble))
        inside = np.clip(places / limit, 0.0, 1.0)[..., None] * (1.0 if self.limit is None else 0.75)
        outside = np.clip((places - limit) / max(1.0 - limit, 1e-12), 0.0, 1.0)[..., None]
        return np.where((places > limit)[..., None], mild + outside * (worst - mild), pale + inside * (deep - pale))

    def swatches(self, theme: style.Theme) -> list[tuple[str, str]]:
        """Return (label, colour) of three values that explain the colours."""
        middle = self.limit
        if middle is None:
            middle = math.sqrt(self.low) * math.sqrt(self.high) if self.log else (self.low + self.high) / 2
        values = np.array([self.low, middle, self.high])
        labels = [percent(value) if self.shares else short(value, 2) for value in values]
        if self.limit is not None:
            labels[1] = f"limit {labels[1]}"
        colours = ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in self.colours(values, theme)]
        return list(zip(labels, colours, strict=True))

    def _badness(self, values: np.ndarray) -> np.ndarray:
        """Return where values lie between the good end, 0, and the bad one, 1."""
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(np.maximum(values, 1e-300)), math.log(max(low, 1e-300)), math.log(max(high, 1e-300))
        places = np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)
        return places if self.bad == "high" else 1.0 - places


def log_scale(table: LayerTable, decades: float = 3.0) -> HeatScale:
    """Return a logarithmic scale that holds the table, at least some decades wide: small differences must not look large."""
    usable = table.values[np.isfinite(table.values) & (table.values > 0)]
    if not len(usable):
        return HeatScale(0.1, 10.0, log=True)
    low, high = math.log10(max(usable.min(), 1e-300)), math.log10(min(usable.max(), 1e300))
    missing = max(decades - (high - low), 0.0) / 2
    return HeatScale(10 ** max(low - missing, -300.0), 10 ** min(high + missing, 300.0), log=True)


def picture(table: LayerTable, scale: HeatScale, last_step: int, theme: style.Theme) -> tuple[np.ndarray, list[int]]:
    """Return red, green, blue, opacity of the heat map over steps 0 to ``last_step``, and the first layer of each of its rows."""
    values, known, starts = _fewer_rows(table.values, table.known, scale.bad)
    values, known = _columns(values, known, table.steps, max(1, last_step), scale.bad)
    image = np.zeros((*values.shape, 4))
    image[..., :3] = scale.colours(values, theme)
    image[np.isnan(values), :3] = to_rgb(theme.text)  # what is not finite must be seen
    image[..., 3] = known
    return image, starts


def _worst(values: np.ndarray, starts: np.ndarray, axis: int, bad: str) -> np.ndarray:
    """Return the worst value of each piece; NaN is worse than any number."""
    return (np.maximum if bad == "high" else np.minimum).reduceat(values, starts, axis=axis)


def _fewer_rows(values: np.ndarray, known: np.ndarray, bad: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    count = min(len(values), MOST_ROWS)
    starts = np.arange(count) * len(values) // count
    # A layer that was not measured must not hide its neighbours.
    filled = np.where(known, values, -np.inf if bad == "high" else np.inf)
    return _worst(filled, starts, 0, bad), np.logical_or.reduceat(known, starts, axis=0), starts.tolist()


def _columns(values: np.ndarray, known: np.ndarray, steps: np.ndarray, last: int, bad: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the worst of each interval of steps; what was measured holds until the next measurement."""
    count = min(MOST_COLUMNS, last + 1)
    places = np.minimum(steps * count // last, count - 1)
    starts = np.unique(places, return_index=True)[1]
    worst, seen = _worst(values, starts, 1, bad), np.logical_or.reduceat(known, starts, axis=1)
    columns = places[starts]
    holds = int(np.diff(columns).max()) if len(columns) > 1 else count  # after the last one as long as it ever was between two
    found, there = np.full((len(values), count), np.nan), np.zeros((len(values), count), bool)
    for row in range(len(values)):
        own = np.flatnonzero(seen[row])
        if len(own):
            latest = np.searchsorted(columns[own], np.arange(count), side="right") - 1
            fresh = (latest >= 0) & (np.arange(count) - columns[own][np.maximum(latest, 0)] <= holds)
            found[row], there[row] = np.where(fresh, worst[row, own][np.maximum(latest, 0)], np.nan), fresh
    return found, there
