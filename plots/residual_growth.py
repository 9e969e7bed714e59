"""Residual growth: by how much each block of a residual net multiplies the variance of the signal, at the start."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.layers import layer_table
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Late blocks that multiply by more than this let the signal grow geometrically; 2: the branch is as large as its input.
LIMIT, DOUBLES = 1.6, 3.0


def residual_growth(run: Run, ax: Axes) -> None:
    """Draw the growth of every block, blocks by steps."""
    layers = [f"residual_growth/{layer}" for layer in run.layers("residual_growth")]
    with panel(run, ax, "Residual growth", unit="variance, a block", needs=["residual_growth", *layers]) as p:
        if not p.missing:
            draw_layers(p, run, "residual_growth", HeatScale(1.0, DOUBLES, log=True, limit=LIMIT))
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say what the late blocks do to the signal, and all of them together."""
    if broken := not_finite(run, "residual_growth"):
        return broken
    now, found = recent(run, "residual_growth"), layer_table(run, "residual_growth")
    if now is None:
        return None
    factors = np.array([]) if found is None else found.last()
    factors = factors[np.isfinite(factors) & (factors > 0)]
    whole = "" if len(factors) < 2 else f", {short(float(np.exp(np.minimum(np.log(factors).sum(), 700.0))), 2)} in all"
    text = f"late blocks multiply it by {short(now, 2)}{whole}"
    return Verdict(text, "trouble" if now > LIMIT else "healthy")
