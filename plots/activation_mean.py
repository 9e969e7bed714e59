"""Activation mean by depth: how far from zero every layer's outputs lie, measured by how far they scatter."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.layers import LayerTable, layer_table
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Outputs whose mean is this many times their standard deviation are a constant with a little signal on top.
LIMIT = 5.0


def activation_mean(run: Run, ax: Axes) -> None:
    """Draw the mean of the outputs over their standard deviation, layers by steps; without the latter the mean itself."""
    table = offsets(run)
    title, unit = "Activation mean", "mean" if table is None else "|mean| / scatter"
    with panel(run, ax, title, unit=unit, scale="linear" if table is None else "auto", needs="activation_mean") as p:
        if p.missing:
            return
        if table is None:
            p.line("activation_mean")
        else:
            draw_layers(p, run, "activation_mean", HeatScale(0.1, 50.0, log=True, limit=LIMIT), table)
        p.read(verdict(run))


def offsets(run: Run) -> LayerTable | None:
    """Return mean over standard deviation of every layer, where both were measured at the same steps, else None."""
    means, spreads = layer_table(run, "activation_mean"), layer_table(run, "activation_std")
    if means is None or spreads is None or means.names != spreads.names or not np.array_equal(means.steps, spreads.steps):
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.abs(means.values) / spreads.values
    # A layer that puts out the same for all has no scatter to compare with; activation_std says so.
    ratio = np.where(np.isfinite(ratio), ratio, np.nan)
    known = means.known & (np.isfinite(ratio) | ~np.isfinite(means.values) | ~np.isfinite(spreads.values))
    return LayerTable(means.names, means.steps, ratio, known)


def verdict(run: Run) -> Verdict | None:
    """Say whether some layer's outputs are mostly a constant."""
    if broken := not_finite(run, "activation_mean", subject="outputs are"):
        return broken
    now = recent(run, "activation_mean", 5)
    if now is None:
        return None
    table = offsets(run)
    last = np.array([np.nan]) if table is None else table.last()
    if table is None or not np.isfinite(last).any():
        return Verdict(f"outputs are {short(now)} in the mean")
    worst = int(np.nanargmax(last))
    text = f"{table.label(worst, 24)}: mean {short(float(last[worst]), 2)} times the scatter"
    if last[worst] > LIMIT:
        return Verdict(f"{text}, centre its inputs", "watch")
    return Verdict(f"{text}, the most of all layers", "healthy")
