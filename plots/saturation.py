"""Saturation: which share of every sigmoid or tanh layer's outputs lie where the curve is flat and passes no gradient."""

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

#: Half of the outputs without gradient slow the layers below down; nearly all stop them.
LIMIT, STUCK = 0.5, 0.95


def saturation(run: Run, ax: Axes) -> None:
    """Draw the share of saturated outputs, layers by steps."""
    with panel(run, ax, "Saturation", unit="share of outputs", needs="saturation") as p:
        if not p.missing:
            draw_layers(p, run, "saturation", HeatScale(0.0, 1.0, limit=LIMIT, shares=True))
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say which layer is the most saturated, and what that means."""
    if broken := not_finite(run, "saturation"):
        return broken
    now = recent(run, "saturation", 5)
    if now is None:
        return None
    table = layer_table(run, "saturation")
    last = np.array([np.nan]) if table is None else table.last()
    where = ""
    if table is not None and np.isfinite(last).any():
        now = float(np.nanmax(last))
        where = f" in {table.label(int(np.nanargmax(last)), 18)}"
    if now > STUCK:
        return Verdict(f"{percent(now)} flat{where}: layers below do not learn", "trouble")
    if now > LIMIT:
        return Verdict(f"{percent(now)} flat{where}: little gradient comes through", "watch")
    return Verdict(f"{percent(now)} flat{where}, the most of all layers" if now > 0 else "no output is saturated", "healthy")
