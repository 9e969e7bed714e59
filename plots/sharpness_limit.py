"""Sharpness over its stability limit: how close the learning rate is to the one at which steps overshoot."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: From here on steps overshoot for good; up to here full-batch training hovers at the edge.
FAR_BEYOND = 1.5


def sharpness_limit(run: Run, ax: Axes) -> None:
    """Draw the sharpness as a share of the limit of the optimizer in use."""
    with panel(run, ax, "Sharpness", unit="share of the stability limit", scale="auto", needs="sharpness_ratio") as p:
        if p.missing:
            return
        p.line("sharpness_ratio")
        p.healthy(0.0, 1.0)
        p.level("edge", 1.0, "edge of stability")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say on which side of the limit the run is, and which learning rate the curvature allows."""
    if broken := not_finite(run, "sharpness_ratio"):
        return broken
    now = recent(run, "sharpness_ratio", 3)
    if now is None:
        return None
    rate = recent(run, "max_learning_rate", 3)
    allowed = "" if rate is None else f", learning rate up to {short(rate, 2)}"
    if now <= 0:
        return Verdict("the loss bends up nowhere: no limit", "neutral")
    if now > FAR_BEYOND:
        return Verdict(f"{short(now, 2)} times the limit: steps overshoot{allowed}", "trouble")
    if now > 0.9:
        return Verdict(f"{percent(now)} of the limit: edge of stability{allowed}", "watch")
    return Verdict(f"{percent(now)} of the limit{allowed}", "healthy")
