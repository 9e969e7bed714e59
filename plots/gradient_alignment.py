"""Gradient alignment: do the gradients of the samples point the same way?"""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Below zero samples undo each other; this close to it they do not know of each other.
NOTHING = 0.01


def gradient_alignment(run: Run, ax: Axes) -> None:
    """Draw the mean cosine between samples; above zero, shaded, a step for one helps the others."""
    with panel(run, ax, "Gradient alignment", unit="mean cosine", needs="gradient_alignment") as p:
        if not p.missing:
            p.line("gradient_alignment")
            p.healthy(0.0, 1.0)
            p.level("opposed", 0.0, "below: samples undo each other")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether a step for one sample helps another."""
    if broken := not_finite(run, "gradient_alignment"):
        return broken
    now = recent(run, "gradient_alignment")
    if now is None:
        return None
    if now < -NOTHING:
        return Verdict(f"{short(now, 2)}: the samples undo each other", "watch")
    if now < NOTHING:
        return Verdict(f"{short(now, 2)}: a step for one sample does nothing for another")
    return Verdict(f"{short(now, 2)}: a step for one sample helps the others", "healthy")
