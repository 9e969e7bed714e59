"""Effective rank: in which share of the possible directions every layer's outputs vary."""

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

#: Below this share of its directions a layer's representation has collapsed.
LIMIT = 0.05


def effective_rank(run: Run, ax: Axes) -> None:
    """Draw the effective rank over the width, layers by steps."""
    with panel(run, ax, "Effective rank", unit="share of the width", needs="effective_rank") as p:
        if not p.missing:
            draw_layers(p, run, "effective_rank", HeatScale(0.01, 1.0, log=True, limit=LIMIT, bad="low", shares=True))
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say which layer is the narrowest in effect."""
    if broken := not_finite(run, "effective_rank", subject="outputs are"):
        return broken
    now = recent(run, "effective_rank", 5)
    if now is None:
        return None
    table = layer_table(run, "effective_rank")
    last = np.array([np.nan]) if table is None else table.last()
    name = "the narrowest layer"
    if table is not None and np.isfinite(last).any():
        now = float(np.nanmin(last))
        name = table.label(int(np.nanargmin(last)), 22)
    if now <= 0:
        return Verdict(f"{name} puts out the same for every sample", "trouble")
    if now < LIMIT:
        return Verdict(f"{name} varies in {percent(now)} of its directions: collapsed", "watch")
    return Verdict(f"{name} varies in {percent(now)} of its directions, the least", "healthy")
