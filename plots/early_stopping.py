"""Evidence for early stopping: is there more in the gradient than sampling noise (Mahsereci 2017)?"""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: So many measured steps in a row above zero are more than chance.
_PATIENCE = 10


def early_stopping(run: Run, ax: Axes) -> None:
    """Draw the criterion; below zero, shaded, there is a signal left to learn from."""
    with panel(run, ax, "Early-stopping evidence", needs="early_stopping") as p:
        if not p.missing:
            p.line("early_stopping")
            p.healthy(-math.inf, 0.0)
            p.level("stop", 0.0, "above: only noise is left")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the gradient still holds a signal."""
    if broken := not_finite(run, "early_stopping"):
        return broken
    now = recent(run, "early_stopping")
    if now is None:
        return None
    values = scalars(run, "early_stopping")[1]
    values = values[np.isfinite(values)][-_PATIENCE:]
    if len(values) == _PATIENCE and (values > 0).all():
        return Verdict(f"{short(now, 2)}: noise explains the gradient, time to stop", "watch")
    if now > 0:
        return Verdict(f"{short(now, 2)}: noise alone would explain the gradient")
    return Verdict(f"{short(now, 2)}: there is a signal left to learn from", "healthy")
