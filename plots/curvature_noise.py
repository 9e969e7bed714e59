"""Curvature noise: whether the curvature of one mini-batch is that of the data."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Up to here one mini-batch speaks for the data.
TRUSTED = 0.3


def curvature_noise(run: Run, ax: Axes) -> None:
    """Draw the relative standard error of the curvature along the step."""
    with panel(run, ax, "Curvature noise", unit="relative standard error", scale="auto", needs="curvature_noise") as p:
        if p.missing:
            return
        p.line("curvature_noise", smoothed=True)
        p.healthy(0.0, TRUSTED)
        p.level("noise", 1.0, "noise only")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the curvature of one mini-batch can be trusted."""
    if broken := not_finite(run, "curvature_noise"):
        return broken
    now = recent(run, "curvature_noise")
    if now is None:
        return None
    if now >= 1:
        return Verdict(f"{short(now, 2)}: curvature of a few samples, average over steps", "watch")
    return Verdict(f"one mini-batch knows its curvature to {percent(now)}", "healthy" if now <= TRUSTED else "neutral")
