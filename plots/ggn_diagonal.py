"""Diagonal of the Gauss-Newton matrix: how far apart the curvatures of the single weights are."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.layers import layer_table, shorten_middle
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

NAME = "ggn_diagonal"


def ggn_diagonal(run: Run, ax: Axes) -> None:
    """Draw the mean curvature of the weights of each parameter over the steps."""
    layers = [f"{NAME}/{layer}" for layer in run.layers(NAME)]
    with panel(run, ax, "Gauss-Newton diagonal", unit="mean by parameter", scale="auto", needs=[NAME, *layers]) as p:
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
    positive = last[np.isfinite(last) & (last > 0)]
    if not len(positive):
        return Verdict("no weight has an influence on the output")
    sharpest = shorten_middle(table.names[int(np.nanargmax(last))], 24)
    factor = float(positive.max()) / float(positive.min())
    apart = f", {short(factor, 2)} times the flattest" if len(positive) > 1 and math.isfinite(factor) else ""
    return Verdict(f"{sharpest} is the sharpest{apart}")
