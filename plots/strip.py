"""Strip: histograms over the steps as a heat map, bins from negative below to positive on top, and the last one beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots import style
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.histograms import Histograms, histograms
from cockpit_lite.plots.layers import LayerTable
from cockpit_lite.plots.numbers import StepTicks
from cockpit_lite.plots.panel import Panel
from cockpit_lite.run import Run

#: Shares of elements at the ends of the colour scale.
SCALE = HeatScale(1e-4, 0.3, log=True, shares=True)
#: Width of the last histogram beside the strip, and of the gap before it, as shares of the steps.
_WIDTH, _GAP = 0.14, 0.02


class Strip(Panel):
    """A panel for histograms over the steps."""

    def __init__(self, ax: Axes):
        super().__init__(ax)
        self._ticks = _TicksUpTo()
        ax.xaxis.set_major_locator(self._ticks)

    def histograms(self, found: Histograms) -> None:
        """Draw the histograms of one axis of bins; bins at the ends that are always empty are left out."""
        (bins,) = found.bins
        used = np.flatnonzero((found.shares > 0).any(axis=0))
        middle = bins.count // 2
        reach = max(3, int(np.abs(used - middle).max()) + 1) if len(used) else 3
        self._bins, self._first = bins, max(0, middle - reach)
        chosen = slice(self._first, min(bins.count, middle + reach + 1))
        table = found.shares[:, chosen].T[::-1]  # positive on top
        names = tuple(str(row) for row in range(len(table)))
        self.heat(LayerTable(names, found.steps, table, np.full(table.shape, True)), SCALE)
        self._draw_last(found.last()[chosen][::-1])

    def _draw_last(self, shares: np.ndarray) -> None:
        last, beside = max(1, self._last_step), np.delete(shares, len(shares) // 2)
        # The bin around zero often holds more than all others together: it may reach the edge, and the others are seen.
        lengths = np.minimum(shares / max(float(beside.max()), 1e-12), 1.15) * _WIDTH / 1.15
        start = (1 + _GAP) * last
        edges = np.repeat(np.arange(len(shares) + 1) - 0.5, 2)[1:-1]
        lengths = start + np.repeat(lengths, 2) * last
        shade = self._theme.series[0]
        self._artists.area("last", self.ax.fill_betweenx(edges, start, lengths, color=shade, alpha=0.35, linewidth=0, zorder=2))
        self._artists.line("last outline", self.ax, lengths, edges, {"color": shade, "linewidth": 1.0, "zorder": 3})
        self._artists.note(
            "last label",
            "last",
            (start + _WIDTH / 2 * last, 0.0),
            self.ax.get_xaxis_transform(),
            (0, -3),
            color=self._theme.muted,
            size=style.TICK_SIZE,
            ha="center",
            va="top",
        )

    def _name_rows(self, names: list[str]) -> None:
        """Write powers of ten beside the edges between the bins, and 0 in the middle, as many as there is room for."""
        rows = len(names)
        room = max(1, int(self.ax.get_window_extent().height / self.ax.figure.dpi / 0.15) // 2 - 1)
        edges = self._bins.edges
        exponents = np.log10(np.abs(edges))
        decades = [
            edge
            for edge in range(self._first, self._first + rows - 1)
            if edges[edge] > 0 and abs(exponents[edge] - round(exponents[edge])) < 1e-9
        ]
        stride = max(1, math.ceil(len(decades) / room))
        middle = (rows - 1) / 2
        self._name_row("0", middle)
        # the innermost edge stands beside the zero, so labels begin at the outside
        for edge in decades[::-1][::stride]:
            height = rows - 1 - (edge - self._first) - 0.5
            if middle - height > 0.08 * rows:
                self._name_row(f"1e{round(exponents[edge])}", height)
                self._name_row(f"−1e{round(exponents[edge])}", 2 * middle - height)
        self._gutter = 0.015

    def _name_row(self, text: str, height: float) -> None:
        self._artists.note(
            ("row", text),
            text,
            (0.0, height),
            self.ax.transData,
            (-4, 0),
            color=self._theme.muted,
            size=style.MARK_SIZE,
            ha="right",
            va="center",
        )

    def _is_there(self, run: Run, name: str) -> bool:
        found = histograms(run, name)
        return found is not None and len(found.bins) == 1

    def _settle_steps(self) -> None:
        last = max(1, self._last_step)
        self._ticks.last = last
        self._set_limits(self.ax, "x", (-self._gutter * last, (1 + _GAP + _WIDTH + 0.01) * last))


class _TicksUpTo(StepTicks):
    """Ticks up to the last step: what stands behind it is no step."""

    last = math.inf

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        return super().tick_values(vmin, min(vmax, self.last))
