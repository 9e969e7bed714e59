"""Dead units: which share of every ReLU layer's units put out zero for the whole batch."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.layers import layer_table
from cockpit_lite.plots.numbers import percent
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: A layer that has lost half of its units has lost capacity; one that has lost nearly all passes nothing on.
LIMIT, NOTHING_LEFT = 0.5, 0.95


def dead_units(run: Run, ax: Axes) -> None:
    """Draw the share of dead units, layers by steps."""
    with panel(run, ax, "Dead units", unit="share of a layer", needs="dead_units") as p:
        if not p.missing:
            draw_layers(p, run, "dead_units", HeatScale(0.0, 1.0, limit=LIMIT, shares=True))
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say which layer has lost the most, and what that means."""
    if broken := not_finite(run, "dead_units"):
        return broken
    now = recent(run, "dead_units", 5)
    if now is None:
        return None
    table = layer_table(run, "dead_units")
    last = np.array([np.nan]) if table is None else table.last()
    where = ""
    if table is not None and np.isfinite(last).any():
        now = float(np.nanmax(last))
        where = f" in {table.label(int(np.nanargmax(last)), 20)}"
    if broken := not_finite(run, "activation_std", subject="outputs are"):  # what is not a number is not dead either
        return broken
    if now > NOTHING_LEFT:
        return Verdict(f"{percent(now)} dead{where}: it passes nothing on", "trouble")
    if now > LIMIT:
        return Verdict(f"{percent(now)} dead{where}: capacity is lost", "watch")
    return Verdict(f"{percent(now)} dead{where}, the most of all layers" if now > 0 else "no unit is dead", "healthy")
