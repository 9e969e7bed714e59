"""Gauss-Newton trace: the curvature of the loss as if the model were linear, beside that of the Hessian."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars, standard_errors
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run


def ggn_trace(run: Run, ax: Axes) -> None:
    """Draw the trace with its standard error, and the Hessian's where it was measured."""
    with panel(run, ax, "Gauss-Newton trace", scale="auto", needs="ggn_trace") as p:
        if p.missing:
            return
        steps, values = scalars(run, "ggn_trace")
        errors = standard_errors(run, "ggn_trace", steps)
        if np.isfinite(errors).any():
            p.band("error", steps, values - errors, values + errors)
        both = len(scalars(run, "hessian_trace")[0]) > 0
        p.line("ggn_trace", label="Gauss-Newton" if both else None)
        if both:
            p.line("hessian_trace", label="Hessian", colour=1, dashed=True)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how far the Hessian is from it: what bends in the model itself."""
    if broken := not_finite(run, "ggn_trace"):
        return broken
    now, hessian = recent(run, "ggn_trace", 5), recent(run, "hessian_trace", 5)
    if now is None:
        return None
    if hessian is None or not now > 0:
        return Verdict(short(now))
    return Verdict(f"{short(now)}; the Hessian's is {percent(hessian / now)} of it")
