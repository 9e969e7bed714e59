"""Distance: how far training has come from where it began, and whether it goes one way or wanders."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Steps from which on an exponent means something.
_ENOUGH = 20


def distance(run: Run, ax: Axes) -> None:
    """Draw the distance from the first weights, and the square root of the steps that a random walk would follow."""
    with panel(run, ax, "Distance", unit="from the start", needs="distance") as p:
        if p.missing:
            return
        p.line("distance", label="‖θ - θ₀‖", smoothed=False)
        steps, values = scalars(run, "distance")
        usable = np.isfinite(values) & (values > 0) & (steps > 0)
        if usable.sum() >= _ENOUGH:
            last = np.flatnonzero(usable)[-1]
            walk = values[last] * np.sqrt(steps[usable] / steps[last])
            p.curve("walk", steps[usable], walk, label="random walk", colour=1, dashed=True)
        p.read(verdict(run))


def exponent(run: Run) -> float | None:
    """Return b of distance ~ step^b over the second half of the run, or None if there are too few steps."""
    steps, values = scalars(run, "distance")
    usable = np.isfinite(values) & (values > 0) & (steps > 0)
    steps, values = steps[usable], values[usable]
    later = steps >= (steps[-1] / 2 if len(steps) else 0)
    if later.sum() < _ENOUGH:
        return None
    return float(np.polyfit(np.log(steps[later]), np.log(values[later]), 1)[0])


def verdict(run: Run) -> Verdict | None:
    """Say how far, and how the distance grows."""
    if broken := not_finite(run, "distance"):
        return broken
    now = recent(run, "distance", 1)
    if now is None:
        return None
    power = exponent(run)
    if power is None:
        return Verdict(f"{short(now)} from the start")
    way = "settling" if power < 0.25 else "wandering like a random walk" if power < 0.7 else "going one way"
    if power > 1.5:
        return Verdict(f"{short(now)} from the start, faster and faster: running away", "watch")
    return Verdict(f"{short(now)} from the start, {way}", "neutral")
