"""Wiring: every yes-or-no check of the training loop as one strip, steps from left to right; what is not in order is coloured."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.layers import LayerTable
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: Reading -> how its row is called. All of them are 0 where all is in order.
CHECKS = {
    "parameters_not_optimized": "not optimized",
    "parameters_frozen": "frozen at start",
    "graph_cut": "graph cut",
    "tied_weights_apart": "tied apart",
    "symmetric_units": "units alike",
    "gradient_left_over": "gradient left",
    "modules_in_eval_mode": "trains in eval",
    "forwards_in_train_mode": "valid. in train",
    "softmax_twice": "softmax twice",
    "batch_repeated": "batch repeated",
    "ranks_apart": "ranks apart",
}


def table(run: Run) -> LayerTable | None:
    """Return the checks that were made, 1 where one failed, or None if there was none."""
    found = {name: scalars(run, name) for name in CHECKS}
    found = {name: series for name, series in found.items() if len(series[0])}
    if not found:
        return None
    steps = np.unique(np.concatenate([own for own, _ in found.values()]))
    values, known = np.zeros((len(found), len(steps))), np.zeros((len(found), len(steps)), bool)
    for row, (own, series) in enumerate(found.values()):
        places = np.searchsorted(steps, own)
        # A little of a gradient that is left over is rounding; a count is at least 1.
        values[row, places], known[row, places] = np.where(np.isfinite(series), series > 1e-3, np.nan), True
    return LayerTable(tuple(CHECKS[name] for name in found), steps, values, known)


def wiring(run: Run, ax: Axes) -> None:
    """Draw which checks failed at which steps."""
    with panel(run, ax, "Wiring", unit="checks that fail", needs=list(CHECKS)) as p:
        if not p.missing and (found := table(run)) is not None:
            p.heat(found, HeatScale(0.0, 1.0, limit=0.5))
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Name the check that fails, or say how many pass."""
    found = table(run)
    if found is None:
        return None
    last = [row[own][-2:] for row, own in zip(found.values, found.known, strict=True)]
    failing = [name for name, values in zip(found.names, last, strict=True) if len(values) and np.nanmin(values, initial=1) > 0]
    if failing:
        return Verdict(f"{', '.join(failing[:2])}{' and more' if len(failing) > 2 else ''}", "trouble")
    return Verdict(f"all {len(found.names)} checks pass", "healthy")
