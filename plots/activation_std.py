"""Activation scale by depth: the standard deviation of what every layer puts out."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.layers import growth, layer_table
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: A signal that shrinks or grows this much from the first layer to the last, in order, vanishes or explodes.
WATCH, TROUBLE = 30.0, 1e3
#: Layers from which on a factor from layer to layer is more than chance.
_DEEP = 5


def activation_std(run: Run, ax: Axes) -> None:
    """Draw the standard deviation of the outputs, layers by steps."""
    with panel(run, ax, "Activation scale", unit="standard deviation", scale="auto", needs="activation_std") as p:
        if not p.missing:
            draw_layers(p, run, "activation_std")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the signal keeps its scale from layer to layer."""
    if broken := not_finite(run, "activation_std", subject="outputs are"):
        return broken
    now = recent(run, "activation_std", 5)
    if now is None:
        return None
    table = layer_table(run, "activation_std")
    if table is None:
        return Verdict(f"outputs scatter by {short(now)}")
    last = table.last()
    if (last == 0).any():
        name = table.label(int(np.argmax(last == 0)), 24)
        return Verdict(f"{name} puts out the same for every sample", "trouble")
    factor = growth(last)
    if factor is not None and len(last) >= _DEEP:
        change = factor ** (len(last) - 1)
        apart = max(change, 1 / max(change, 1e-300))
        if apart > WATCH:
            text = f"grows {short(factor, 2)} times" if factor > 1 else f"shrinks to {short(factor, 2)}"
            return Verdict(f"the signal {text} a layer", "trouble" if apart > TROUBLE else "watch")
    finite = last[np.isfinite(last)]
    if len(finite) < 2:
        return Verdict(f"outputs scatter by {short(now)}")
    return Verdict(f"layers between {short(float(finite.min()), 2)} and {short(float(finite.max()), 2)}: one scale", "healthy")
