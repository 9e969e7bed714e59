"""Drift of the tangent kernel: does the network learn features, or is training lazy?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Below this drift the network still behaves like its linearisation at the start.
LAZY = 0.01
#: What the last quarter of the run may add to a drift that has settled, as a share of it.
SETTLED = 0.1


def tangent_kernel(run: Run, ax: Axes) -> None:
    """Draw the drift, with the lazy regime shaded."""
    with panel(run, ax, "Tangent kernel", unit="drift from the start", needs="tangent_kernel") as p:
        if p.missing:
            return
        steps = scalars(run, "tangent_kernel")[0]
        ends = np.array([0.0, max(1.0, float(steps[-1]))])
        p.band("lazy", ends, np.zeros(2), np.full(2, LAZY), label="lazy", colour=1)
        p.line("tangent_kernel", smoothed=False)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the kernel has drifted, and whether it still does."""
    if broken := not_finite(run, "tangent_kernel"):
        return broken
    now = recent(run, "tangent_kernel", 3)
    if now is None:
        return None
    if now < LAZY:
        return Verdict(f"drift {short(now, 2)}: lazy so far, like a linearised network")
    steps, values = scalars(run, "tangent_kernel")
    finite = np.isfinite(values)
    before = float(np.interp(steps[-1] - (steps[-1] - steps[0]) / 4, steps[finite], values[finite]))
    settled = abs(now - before) < SETTLED * now
    return Verdict(f"drift {short(now, 2)}: features are learned, " + ("the kernel has settled" if settled else "still moving"))
