"""Smallest eigenvalue of the Hessian: how far the loss bends down, beside how far it bends up."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Negative curvature below this share of the largest magnitude is normal.
USUAL_SHARE = 0.3


def min_eigenvalue(run: Run, ax: Axes) -> None:
    """Draw the smallest eigenvalue, and the one of largest magnitude on the right."""
    with panel(run, ax, "Smallest eigenvalue", unit="of the Hessian", needs="min_eigenvalue") as p:
        if p.missing:
            return
        p.line("min_eigenvalue", label="smallest")
        p.line("max_magnitude_eigenvalue", label="largest →", colour=1, dashed=True, right=True)
        p.level("zero", 0.0, "0", trouble=False)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how large the negative curvature is beside the positive."""
    if broken := not_finite(run, "min_eigenvalue"):
        return broken
    lowest = recent(run, "min_eigenvalue", 3)
    if lowest is None:
        return None
    largest = recent(run, "max_magnitude_eigenvalue", 3)
    if lowest >= 0:
        return Verdict(f"{short(lowest)}: no bend downwards was found", "healthy")
    if not largest:
        return Verdict(short(lowest))
    if largest < 0:
        return Verdict(f"{short(lowest)}: bends down more than up", "watch")
    share = -lowest / largest
    if share > USUAL_SHARE:
        return Verdict(f"{short(lowest)}, {percent(share)} of the largest: much negative curvature", "watch")
    return Verdict(f"{short(lowest)}, {percent(share)} of the largest", "healthy")
