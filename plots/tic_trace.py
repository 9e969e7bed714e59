"""Takeuchi information criterion: effective parameters, what the training loss hides of the loss on new data."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: The criterion is noisy: less than this many times its lowest is no growth.
GROWN = 10.0


def tic_trace(run: Run, ax: Axes) -> None:
    """Draw the criterion by traces and by diagonals, on two axes: they differ by orders of magnitude."""
    with panel(run, ax, "Takeuchi criterion", unit="effective parameters", scale="auto", needs=["tic_trace", "tic_diag"]) as p:
        if p.missing:
            return
        both = len(scalars(run, "tic_trace")[0]) > 0
        if both:
            p.line("tic_trace", label="by traces")
        p.line("tic_diag", label="by diagonals", colour=1, dashed=True, right=both)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the model came to rely more on single samples."""
    name = "tic_trace" if len(scalars(run, "tic_trace")[0]) else "tic_diag"
    if broken := not_finite(run, name):
        return broken
    now = recent(run, name)
    if now is None:
        return None
    values = scalars(run, name)[1]
    lowest = float(np.min([np.median(part) for part in np.array_split(values[np.isfinite(values)], 10) if len(part)]))
    if lowest > 0 and now > GROWN * lowest:
        return Verdict(f"{short(now, 2)}, {short(now / lowest, 2)} times its lowest: relies on single samples", "watch")
    return Verdict(f"{short(now, 2)} effective parameters")
