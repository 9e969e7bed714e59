"""Diagonal of the Hessian: how far apart the curvatures of the single weights are, and how many bend down."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_by_parameter, verdict_by_parameter
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.layers import LayerTable, shorten_middle
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

NAME = "hessian_diagonal"


def hessian_diagonal(run: Run, ax: Axes) -> None:
    """Draw the mean curvature of the weights of each parameter over the steps."""
    draw_by_parameter(run, ax, NAME, "Hessian diagonal", "mean by parameter", verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the parameters are apart, and which one is the sharpest."""
    return verdict_by_parameter(run, NAME, describe)


def describe(run: Run, table: LayerTable) -> Verdict | None:
    """Say how far the parameters are apart, and which one is the sharpest."""
    last = table.last()
    if not np.isfinite(last).any():
        return None
    sharpest = int(np.nanargmax(last))
    negative = recent(run, "negative_curvature", 5)
    share = "" if negative is None else f", {percent(negative)} of the weights bend down"
    return Verdict(f"{shorten_middle(table.names[sharpest], 24)} is the sharpest ({short(float(last[sharpest]), 2)}){share}")
