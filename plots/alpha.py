"""Alpha: where on the parabola of the loss the steps land, -1 where they began, 0 at its minimum, 1 as high on the other side."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Single values are noisy, and the largest have no bound: medians and quartiles over so many measured steps at least are shown.
SHORTEST_WINDOW = 9
#: At so many places at most.
MOST_WINDOWS = 200

#: The verdict is about so many of the last measured steps.
RECENT = 40

#: Closer to -1 than this the steps hardly get anywhere.
TIMID = -0.95


def alpha(run: Run, ax: Axes) -> None:
    """Draw the running median between the quartiles; shaded is from no step at all to the minimum."""
    with panel(run, ax, "Alpha", unit="−1 start, 0 minimum, 1 other side", needs="alpha") as p:
        if p.missing:
            return
        steps, values = scalars(run, "alpha")
        low, middle, high = running_quartiles(values)
        if len(values) >= SHORTEST_WINDOW:
            p.band("quartiles", steps, low, high, label="half of the steps")
        p.curve("alpha", steps, middle, label="median" if len(values) >= SHORTEST_WINDOW else None)
        p.healthy(-1.0, 0.0)
        p.level("minimum", 0.0, "minimum", trouble=False)
        p.level("limit", 1.0, "as high on the other side")
        p.read(verdict(run))


def running_quartiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return lower quartile, median and upper quartile around every value, over a twentieth of the series; gaps stay gaps.

    >>> running_quartiles(np.array([1.0, np.nan, 3.0]))[1].tolist()
    [1.0, nan, 3.0]
    """
    if len(values) < SHORTEST_WINDOW:
        return values, values, values
    reach = max(SHORTEST_WINDOW // 2, len(values) // 40)
    finite = np.isfinite(values)
    padded = np.pad(np.where(finite, values, np.nan), reach, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    # Windows overlap: those around so many values say it all, what lies between them is on a line.
    centres = np.flatnonzero(finite)
    if not len(centres):
        return values, values, values
    centres = centres[np.unique(np.linspace(0, len(centres) - 1, MOST_WINDOWS).round().astype(int))]
    ordered = np.sort(windows[centres], axis=1)  # NaN last
    counts = np.isfinite(ordered).sum(axis=1)
    found = []
    for share in (0.25, 0.5, 0.75):
        places = share * (counts - 1)
        left, rest = np.floor(places).astype(int), places % 1
        rows = np.arange(len(centres))
        quantile = (1 - rest) * ordered[rows, left] + rest * ordered[rows, np.minimum(left + 1, counts - 1)]
        found.append(np.where(finite, np.interp(np.arange(len(values)), centres, quantile), values))
    return found[0], found[1], found[2]


def verdict(run: Run) -> Verdict | None:
    """Say where the steps land in the median, and how many go too far."""
    if broken := not_finite(run, "alpha"):
        return broken
    values = scalars(run, "alpha")[1][-RECENT:]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    middle, beyond = float(np.median(values)), float(np.mean(values > 1))
    text = f"median {short(middle, 2)}"
    if middle > 1:
        return Verdict(f"{text}: steps go up, lower the learning rate", "trouble")
    if middle > 0:
        return Verdict(f"{text}: steps go beyond the minimum, the rate is high", "watch")
    if middle < TIMID:
        return Verdict(f"{text}: steps end far before the minimum, a larger rate may do")
    if beyond >= 0.1:
        return Verdict(f"{text}: before the minimum, {percent(beyond)} go up the other side", "healthy")
    return Verdict(f"{text}: steps end before the minimum", "healthy")
