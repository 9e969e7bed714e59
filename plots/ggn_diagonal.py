"""Diagonal of the Gauss-Newton matrix: how far apart the curvatures of the single weights are."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_by_parameter, verdict_by_parameter
from cockpit_lite.plots.layers import LayerTable, shorten_middle
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

NAME = "ggn_diagonal"


def ggn_diagonal(run: Run, ax: Axes) -> None:
    """Draw the mean curvature of the weights of each parameter over the steps."""
    draw_by_parameter(run, ax, NAME, "Gauss-Newton diagonal", "mean by parameter", verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the parameters are apart, and which one is the sharpest."""
    return verdict_by_parameter(run, NAME, describe)


def describe(run: Run, table: LayerTable) -> Verdict | None:
    """Say how far the parameters are apart, and which one is the sharpest."""
    last = table.last()
    positive = last[np.isfinite(last) & (last > 0)]
    if not len(positive):
        return Verdict("no weight has an influence on the output")
    sharpest = shorten_middle(table.names[int(np.nanargmax(last))], 24)
    factor = float(positive.max()) / float(positive.min())
    apart = f", {short(factor, 2)} times the flattest" if len(positive) > 1 and math.isfinite(factor) else ""
    return Verdict(f"{sharpest} is the sharpest{apart}")
