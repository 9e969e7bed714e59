"""Gradient norm: of the whole gradient before and after clipping, and the range over the layers."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: A gradient this many times its own median is far outside its history.
FAR_ABOVE = 10.0
_VANISHED = 1e-7


def grad_norm(run: Run, ax: Axes) -> None:
    """Draw the norm of the mini-batch gradient on a logarithmic axis."""
    with panel(run, ax, "Gradient norm", unit="‖G‖", scale="log", needs="grad_norm") as p:
        if p.missing:
            return
        steps, low, high = layer_range(run)
        if len(steps):
            p.band("layers", steps, low, high, label="layers")
        clipped = len(scalars(run, "grad_norm_clipped")[0]) > 0
        p.line("grad_norm", label="raw" if clipped else "whole")
        if clipped:
            p.line("grad_norm_clipped", label="clipped", colour=1)
        median = _median(run)
        if median > 0:
            p.level("far above", FAR_ABOVE * median, f"{FAR_ABOVE:.0f} × median")
        p.read(verdict(run))


def layer_range(run: Run, name: str = "grad_norm") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, least and greatest value over the layers, at the steps where all were measured."""
    columns = [scalars(run, f"{name}/{layer}") for layer in run.layers(name)]
    columns = [column for column in columns if len(column[0])]
    if len(columns) < 2:
        return np.array([]), np.array([]), np.array([])
    steps = columns[0][0]
    if any(len(other) != len(steps) or not np.array_equal(other, steps) for other, _ in columns):
        for other, _ in columns[1:]:
            steps = np.intersect1d(steps, other, assume_unique=True)
        columns = [(steps, values[np.isin(known, steps)]) for known, values in columns]
    table = np.stack([values for _, values in columns])
    # A layer that is zero (frozen, dead) would stretch the band to the bottom of the logarithmic axis.
    table = np.where(np.isfinite(table) & (table > 0), table, np.nan)
    return steps, np.fmin.reduce(table), np.fmax.reduce(table)


def verdict(run: Run) -> Verdict | None:
    """Say whether the gradient is where it has been, and how far apart the layers are."""
    if broken := not_finite(run, "grad_norm", subject="gradient is"):
        return broken
    now = recent(run, "grad_norm")
    if now is None:
        return None
    median = _median(run)
    if now < _VANISHED:
        return Verdict(f"{short(now)}: nothing left to learn from", "trouble")
    if median > 0 and now > FAR_ABOVE * median:
        return Verdict(f"{short(now)}, {short(now / median, 2)} times its median", "trouble")
    clipped = recent(run, "grad_norm_clipped")
    if clipped is not None and clipped < 0.05 * now:
        return Verdict(f"{short(now)}, clipped to {short(clipped)}: clipping sets the step", "watch")
    low, high = (column[-1:] for column in layer_range(run)[1:])
    if len(low) and np.isfinite(low[0]) and high[0] > 1e4 * low[0]:
        return Verdict(f"{short(now)}; layers {short(float(high[0] / low[0]), 2)} times apart", "watch")
    return Verdict(
        f"{short(now)}, " + (f"median {short(median)}" if clipped is None else f"clipped to {short(clipped)}"), "healthy"
    )


def _median(run: Run) -> float:
    values = scalars(run, "grad_norm")[1]
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else 0.0
