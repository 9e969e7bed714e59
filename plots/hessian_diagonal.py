"""Diagonal of the Hessian: how far apart the curvatures of the single weights are, and how many bend down."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.layers import layer_table, shorten_middle
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

NAME = "hessian_diagonal"


def hessian_diagonal(run: Run, ax: Axes) -> None:
    """Draw the mean curvature of the weights of each parameter over the steps."""
    layers = [f"{NAME}/{layer}" for layer in run.layers(NAME)]
    with panel(run, ax, "Hessian diagonal", unit="mean by parameter", scale="auto", needs=[NAME, *layers]) as p:
        if p.missing:
            return
        draw_layers(p, run, NAME)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the parameters are apart, and which one is the sharpest."""
    table = layer_table(run, NAME)
    if table is None:
        return None
    broken = table.broken()
    if broken:
        return Verdict(f"{shorten_middle(broken[0], 30)} is not finite", "trouble")
    last = table.last()
    if not np.isfinite(last).any():
        return None
    sharpest = int(np.nanargmax(last))
    negative = recent(run, "negative_curvature", 5)
    share = "" if negative is None else f", {percent(negative)} of the weights bend down"
    return Verdict(f"{shorten_middle(table.names[sharpest], 24)} is the sharpest ({short(float(last[sharpest]), 2)}){share}")
