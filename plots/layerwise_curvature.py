"""Layerwise curvature: which parameters the loss is sharp in, as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_by_parameter, verdict_by_parameter
from cockpit_lite.plots.layers import LayerTable, shorten_middle
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

NAME = "layerwise_curvature"


def layerwise_curvature(run: Run, ax: Axes) -> None:
    """Draw the trace of each parameter's block of the Hessian over the steps."""
    draw_by_parameter(run, ax, NAME, "Curvature by layer", "trace of the block", verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Name the parameter that carries most of the curvature."""
    return verdict_by_parameter(run, NAME, describe)


def describe(run: Run, table: LayerTable) -> Verdict | None:
    """Name the parameter that carries most of the curvature."""
    last = table.last()
    positive = np.where(np.isfinite(last) & (last > 0), last, 0.0)
    if not positive.any():
        return Verdict("no layer bends upwards")
    top = int(positive.argmax())
    name = shorten_middle(table.names[top], 24)
    share = float(positive[top] / positive.sum())
    return Verdict(f"{name} carries {percent(share)} of it ({short(float(last[top]))})")
