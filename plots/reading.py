"""Any reading: a curve, or a heat map where it has layers; for what has no gauge of its own, such as the user's instruments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.layers import LayerTable, layer_table, shorten_middle
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run


def reading(name: str, title: str | None = None, unit: str = "") -> Callable[[Run, Axes], None]:
    """Return the gauge of a reading.

    Args:
        name: The reading; of ``<name>/<layer>`` there may be any number.
        title: Of the gauge; by default the reading's name.
        unit: Behind it.
    """

    def gauge(run: Run, ax: Axes) -> None:
        layers = [f"{name}/{layer}" for layer in run.layers(name)]
        shown = shorten_middle(name.replace("_", " "), 40) if title is None else title
        with panel(run, ax, shown[:1].upper() + shown[1:], unit=unit, scale="auto", needs=[name, *layers]) as p:
            if not p.missing:
                table = layer_table(run, name)
                draw_layers(p, run, name, None if table is None else _linear_scale(table), table)
                p.read(verdict(run, name))

    gauge.__name__ = name
    return gauge


def _linear_scale(table: LayerTable) -> HeatScale | None:
    """Return a linear scale over the data where a logarithmic one would hide some of them, else None."""
    finite = table.values[np.isfinite(table.values)]
    positive = finite[finite > 0]
    if len(positive) and finite.min() >= 0 and positive.max() > 20 * positive.min():
        return None
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    low, high = max(low, -1e300), min(high, 1e300)
    return HeatScale(low, high if high > low else low + 1.0)


def verdict(run: Run, name: str) -> Verdict | None:
    """Say what the reading is now, and between which layers it lies."""
    if broken := not_finite(run, name):
        return broken
    now, table = recent(run, name), layer_table(run, name)
    last = np.array([]) if table is None else table.last()
    finite = last[np.isfinite(last)]
    if len(finite) > 1:
        layers = f"layers between {short(float(finite.min()), 2)} and {short(float(finite.max()), 2)}"
        return Verdict(layers if now is None else f"{short(now)}; {layers}")
    return None if now is None else Verdict(short(now))
