"""Update size and distance: how long the steps are, and how far they have led from the start."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run


def update_size(run: Run, ax: Axes) -> None:
    """Draw the length of each step and the distance from the first weights, on a logarithmic axis."""
    with panel(run, ax, "Way travelled", unit="in weights", scale="log", needs=["update_size", "distance"]) as p:
        p.line("update_size", label="step")
        steps, values = scalars(run, "distance")
        begun = values != 0  # before the first step the distance is 0, which is no news
        if begun.any():
            p.curve("distance", steps[begun], values[begun], label="from start", colour=1)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the weights are from the start and, if every step was recorded, how straight the way was."""
    if broken := not_finite(run, "update_size", "distance"):
        return broken
    distances, (steps, sizes) = scalars(run, "distance")[1], scalars(run, "update_size")
    distances = distances[np.isfinite(distances)]
    if not len(distances):
        size = recent(run, "update_size")
        return None if size is None else Verdict(f"steps of {short(size)}")
    text = f"{short(float(distances[-1]))} from the start"
    way = float(np.sum(sizes))
    if len(steps) > 1 and np.all(np.diff(steps) == 1) and way > 0 and np.isfinite(way):
        return Verdict(f"{text}, {percent(min(1.0, float(distances[-1]) / way))} of the way walked")
    return Verdict(text)
