"""Validation overlap: which share of the samples seen without gradients was trained on before."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.numbers import percent
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: More than this is no chance; nearly all is a look at the training set itself.
LIMIT, ALL = 0.01, 0.9


def validation_overlap(run: Run, ax: Axes) -> None:
    """Draw the share of samples of each validation that were trained on before."""
    with panel(run, ax, "Validation overlap", unit="share of samples", needs="validation_overlap") as p:
        if not p.missing:
            p.line("validation_overlap", smoothed=False)
            p.healthy(0.0, LIMIT)
            p.level("all", 1.0, "all", trouble=False)
            p.level("limit", LIMIT, f"limit {percent(LIMIT)}")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether training and validation share samples."""
    values = scalars(run, "validation_overlap")[1]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    most = float(np.clip(values.max(), 0.0, 1.0))
    if most > ALL:
        return Verdict("nearly all were trained on: a look at the training set?", "watch")
    if most > LIMIT:
        return Verdict(f"{percent(most)} of a validation were trained on before", "trouble")
    return Verdict("no validation sample was trained on before", "healthy")
