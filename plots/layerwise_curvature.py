"""Layerwise curvature: which parameters the loss is sharp in, as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.layers import layer_table, shorten_middle
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

NAME = "layerwise_curvature"


def layerwise_curvature(run: Run, ax: Axes) -> None:
    """Draw the trace of each parameter's block of the Hessian over the steps."""
    layers = [f"{NAME}/{layer}" for layer in run.layers(NAME)]
    with panel(run, ax, "Curvature by layer", unit="trace of the block", scale="auto", needs=[NAME, *layers]) as p:
        if p.missing:
            return
        draw_layers(p, run, NAME)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Name the parameter that carries most of the curvature."""
    table = layer_table(run, NAME)
    if table is None:
        return None
    broken = table.broken()
    if broken:
        return Verdict(f"{shorten_middle(broken[0], 30)} is not finite", "trouble")
    last = table.last()
    positive = np.where(np.isfinite(last) & (last > 0), last, 0.0)
    if not positive.any():
        return Verdict("no layer bends upwards")
    top = int(positive.argmax())
    name = shorten_middle(table.names[top], 24)
    share = float(positive[top] / positive.sum())
    return Verdict(f"{name} carries {percent(share)} of it ({short(float(last[top]))})")
