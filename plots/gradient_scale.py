"""Gradient scale by depth: the gradient of every weight matrix over the matrix, and how it fades or grows on its way back."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.layers import layer_table
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: The first layer's gradient is less than this share of the last one's, or more than this many times it, by a steady factor.
VANISHING, EXPLODING = 1e-3, 1e2
#: Layers from which on a factor from layer to layer is more than chance.
_DEEP = 5
#: A gradient this many times the weights is out of proportion.
OUT_OF_PROPORTION = 100.0


def gradient_scale(run: Run, ax: Axes) -> None:
    """Draw the size of the gradient beside the weights, layers by steps."""
    with panel(run, ax, "Gradient scale", unit="gradient / weights", scale="auto", needs="gradient_scale") as p:
        if not p.missing:
            draw_layers(p, run, "gradient_scale")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say what becomes of the gradient from layer to layer on its way back to the input."""
    if broken := not_finite(run, "gradient_scale", subject="gradient is"):
        return broken
    now = recent(run, "gradient_scale")
    if now is None:
        return None
    factor, table = recent(run, "gradient_growth"), layer_table(run, "gradient_scale")
    if now > OUT_OF_PROPORTION:
        return Verdict(f"{short(now, 2)} times the weights: out of proportion", "trouble")
    if factor is None or table is None:
        return Verdict(f"{short(now, 2)} of the weights")
    count = len(table.names)
    change = 10.0 ** min(max((count - 1) * _log10(factor), -300.0), 300.0)
    if count >= _DEEP and change < VANISHING:
        return Verdict(f"falls to {short(factor, 2)} from each layer to the one before: vanishing", "trouble")
    if count >= _DEEP and change > EXPLODING:
        return Verdict(f"grows {short(factor, 2)} times from each layer to the one before", "trouble")
    return Verdict(f"changes {short(factor, 2)} times from each layer to the one before", "healthy")


def _log10(factor: float) -> float:
    return math.log10(factor) if factor > 0 else -300.0
