"""Joint histogram of parameters and per-sample gradient elements, as last measured: does the gradient depend on the weight?"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.histograms import Bins, histograms, quantile
from cockpit_lite.plots.matrix import Matrix
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import opened
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: Parameters of one magnitude count where at least this share of all are.
ENOUGH = 0.01
#: Factor between the gradients of small and large parameters from which they are said to depend on each other.
APART = 30.0
#: Share of NaN from which there is trouble: less may be rounding.
BROKEN = 1e-3


def grad_hist_2d(run: Run, ax: Axes) -> None:
    """Draw the last joint histograms: parameters upwards, gradients to the right."""
    with opened(Matrix, run, ax, "Weights and gradients", needs="grad_hist_2d") as p:
        found = histograms(run, "grad_hist_2d")
        if p.missing or found is None:
            return
        p.matrix(found.last(), *found.bins)
        p.name_axes("gradient", "weight")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare the gradients of small and of large parameters."""
    found = histograms(run, "grad_hist_2d")
    if found is None or len(found.bins) != 2:
        return None
    last = found.last()
    broken = 1 - float(last.sum())
    if broken > BROKEN:
        return Verdict(f"{percent(broken)} of the pairs are NaN", "trouble")
    medians = by_magnitude(last, *found.bins)
    if len(medians) < 2:
        return Verdict("the weights are all of one magnitude") if medians else None
    small, large = min(medians), max(medians)
    factor = max(medians.values()) / min(medians.values())
    if factor < APART:
        alike = "alike" if factor < 2 else f"within {short(factor, 2)} times"
        return Verdict(f"gradients of small and large weights are {alike}", "healthy")
    if medians[large] > medians[small]:
        return Verdict(f"large weights get up to {short(factor, 2)} times the gradients of others", "watch")
    return Verdict(f"small weights get up to {short(factor, 2)} times the gradients of others", "watch")


def by_magnitude(shares: np.ndarray, rows: Bins, columns: Bins) -> dict[float, float]:
    """Return magnitude of the parameters -> median magnitude of their gradients, where there are enough of them."""
    found: dict[float, float] = {}
    for magnitude in np.unique(rows.magnitudes):
        row = shares[rows.magnitudes == magnitude].sum(axis=0)
        median = quantile(row, columns, 0.5)
        if row.sum() >= ENOUGH and median is not None and np.isfinite(median):
            found[float(magnitude)] = median
    return found
