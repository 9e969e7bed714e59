"""Condition of the Hessian: how far the sharpest direction is from the typical one and from the bulk."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Up to here gradient descent copes by itself.
USUAL = 1e5


def condition(run: Run, ax: Axes) -> None:
    """Draw both quotients on a logarithmic axis."""
    needs = ["condition", "outliers_over_bulk"]
    with panel(run, ax, "Condition", unit="largest eigenvalue over the rest", scale="log", needs=needs) as p:
        if p.missing:
            return
        p.line("condition", label="median")
        p.line("outliers_over_bulk", label="bulk", colour=1)
        p.healthy(1.0, USUAL)
        p.level("steep", USUAL, "ill-conditioned")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how ill-conditioned the loss is, and whether it got worse."""
    if broken := not_finite(run, "condition"):
        return broken
    now = recent(run, "condition", 5)
    bulk = recent(run, "outliers_over_bulk", 5)
    beside = "" if bulk is None else f", {short(bulk, 2)} times the bulk"
    if now is None:
        return None if bulk is None else Verdict(f"the sharpest direction is {short(bulk, 2)} times the bulk")
    values = scalars(run, "condition")[1]
    first = float(np.median(values[np.isfinite(values)][:3]))
    if now > USUAL:
        grown = f", {short(now / first, 2)} times that of the start" if first > 0 and now > 3 * first else ""
        return Verdict(f"{short(now, 2)}: ill-conditioned{grown}", "watch")
    return Verdict(f"{short(now, 2)} times the median direction{beside}", "healthy")
