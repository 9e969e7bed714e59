"""Hessian trace: the curvature summed over all directions."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars, standard_errors
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run


def hessian_trace(run: Run, ax: Axes) -> None:
    """Draw the trace with its standard error where it is an estimate."""
    with panel(run, ax, "Hessian trace", scale="auto", needs="hessian_trace") as p:
        if p.missing:
            return
        steps, values = scalars(run, "hessian_trace")
        errors = standard_errors(run, "hessian_trace", steps)
        if np.isfinite(errors).any():
            p.band("error", steps, values - errors, values + errors)
        p.line("hessian_trace")
        if np.nanmin(values, initial=0.0) < 0:
            p.level("zero", 0.0, "0", trouble=False)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the valley got sharper or flatter since the first measurements."""
    if broken := not_finite(run, "hessian_trace"):
        return broken
    now = recent(run, "hessian_trace", 3)
    if now is None:
        return None
    values = scalars(run, "hessian_trace")[1]
    first = float(np.median(values[np.isfinite(values)][:3]))
    if now < 0:
        return Verdict(f"{short(now)}: curves downwards on average")
    if first <= 0 or len(values) < 4:
        return Verdict(short(now))
    change = now / first
    if change > 1.5:
        return Verdict(f"{short(now)}, {short(change, 2)} times sharper than at the start")
    if change < 1 / 1.5:
        return Verdict(f"{short(now)}, {short(1 / change, 2)} times flatter than at the start")
    return Verdict(f"{short(now)}, about as at the start")
