"""Matrix: a joint histogram as a picture, one quantity upwards and the other to the right, both from negative to positive."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator

from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.histograms import Bins, histograms
from cockpit_lite.plots.panel import Panel
from cockpit_lite.run import Run

#: Shares of pairs at the ends of the colour scale.
SCALE = HeatScale(1e-5, 0.1, log=True, shares=True)


class Matrix(Panel):
    """A panel whose axes are the bins of two quantities; there are no steps in it."""

    def matrix(self, shares: np.ndarray, rows: Bins, columns: Bins) -> None:
        """Draw a joint histogram, the bins of ``rows`` upwards."""
        image = np.ones((*shares.shape, 4))
        image[..., :3] = SCALE.colours(shares, self._theme)
        image[..., 3] = shares > 0  # an empty bin is not a small one
        self._artists.image("matrix", image[::-1], (-0.5, columns.count - 0.5, -0.5, rows.count - 0.5), zorder=1.0)
        for number, axis in enumerate((columns, rows)):
            look: dict[str, Any] = {"color": self._theme.edge, "linewidth": 0.8, "zorder": 1.5}
            middle, end = np.full(2, axis.count // 2, float), np.array([-0.5, (rows, columns)[number].count - 0.5])
            horizontal, vertical = (middle, end) if number == 0 else (end, middle)
            self._artists.line(("middle", number), self.ax, horizontal, vertical, look)
        self._name(self.ax.xaxis, columns, most=7)
        self._name(self.ax.yaxis, rows, most=5)
        self._sizes = (columns.count, rows.count)
        self._legend += [("■", label, colour) for label, colour in SCALE.swatches(self._theme)]

    def name_axes(self, columns: str, rows: str) -> None:
        """Write what the axes are, inside the picture at their ends."""
        for key, text, at, align in (
            ("columns", columns, (1.0, 0.0), ("right", "bottom")),
            ("rows", rows, (0.0, 1.0), ("left", "top")),
        ):
            offset = (-4, 3) if key == "columns" else (4, -3)
            look: dict[str, Any] = {
                "color": self._theme.muted,
                "size": 7.5,
                "ha": align[0],
                "va": align[1],
                "background": self._theme.card,
            }
            self._artists.note(("axis", key), text, at, self.ax.transAxes, offset, **look)

    @staticmethod
    def _name(axis: Any, bins: Bins, most: int) -> None:
        """Put ticks at the edges between bins that are powers of ten, and at zero."""
        stride = max(1, -(-2 * (bins.high - bins.low + 1) // most))
        exponents = range(bins.high, bins.low, -stride)
        middle = bins.count // 2
        places, labels = [float(middle)], ["0"]
        for exponent in exponents:
            distance = (exponent - bins.low) * bins.per_decade + 0.5
            places += [middle + distance, middle - distance]
            labels += [f"1e{exponent}", f"−1e{exponent}"]
        axis.set_major_locator(FixedLocator(places))
        axis.set_major_formatter(FixedFormatter(labels))

    def _is_there(self, run: Run, name: str) -> bool:
        found = histograms(run, name)
        return found is not None and len(found.bins) == 2

    def _settle_steps(self) -> None:
        if not self.missing:
            self._set_limits(self.ax, "x", (-0.5, self._sizes[0] - 0.5))

    def _settle_values(self) -> None:
        if not self.missing:
            self._set_limits(self.ax, "y", (-0.5, self._sizes[1] - 0.5))

    def _mark_alerts(self) -> None:
        """An alert belongs to a step, and there are none here."""
