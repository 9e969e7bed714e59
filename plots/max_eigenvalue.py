"""Largest eigenvalue of the Hessian: the sharpest direction, under the limit that the learning rate sets."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import at_steps, elide, optimizer_name, recent, scalars, stability_factor
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run


def max_eigenvalue(run: Run, ax: Axes) -> None:
    """Draw the largest eigenvalue and, for gradient descent, the stability limit f / learning rate."""
    with panel(run, ax, "Largest eigenvalue", unit="of the Hessian", scale="auto", needs="max_eigenvalue") as p:
        if p.missing:
            return
        p.line("max_eigenvalue", smoothed=False)
        steps, limits = stability_limit(run)
        if len(steps):
            p.healthy(-math.inf, float(limits[-1]))
            p.limit("stability", steps, limits, f"{short(stability_factor(run) or 0.0)} / learning rate")
        p.read(verdict(run))


def stability_limit(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and the eigenvalue above which steps overshoot there; empty arrays if the optimizer has no such limit."""
    factor = stability_factor(run)
    steps, rates = scalars(run, "learning_rate")
    positive = rates > 0
    if not factor or not positive.any():
        return np.array([]), np.array([])
    return steps[positive], factor / rates[positive]


def verdict(run: Run) -> Verdict | None:
    """Compare with the stability limit."""
    if broken := not_finite(run, "max_eigenvalue"):
        return broken
    now = recent(run, "max_eigenvalue", 3)
    if now is None:
        return None
    factor = stability_factor(run)
    rate = at_steps(run, "learning_rate", scalars(run, "max_eigenvalue")[0][-1:])[0]
    if not factor or not rate > 0:
        optimizer = optimizer_name(run)
        return Verdict(f"{short(now)}" + (f"; {elide(optimizer, 24)} has no fixed limit" if optimizer and not factor else ""))
    share = now * float(rate) / factor
    if share > 1.5:
        return Verdict(f"{short(now)}, {short(share, 2)} times the limit: steps overshoot", "trouble")
    if share > 0.9:
        return Verdict(f"{short(now)}, at the limit {short(factor / float(rate))}: edge of stability", "watch")
    return Verdict(f"{short(now)}, limit {short(factor / float(rate))}", "healthy")
