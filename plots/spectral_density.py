"""Spectral density: where the eigenvalues of the Hessian are, over the steps: outliers above, the bulk at zero."""

from __future__ import annotations

import itertools
import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.heat import HeatScale
from cockpit_lite.plots.layers import LayerTable
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Rows of the picture, an odd number: one for zero, and as many for positive as for negative eigenvalues at most.
ROWS = 41
#: A node stands for eigenvalues around it: it is spread over this many rows, as a standard deviation.
SPREAD = 1.2
#: Eigenvalues below this share of the largest are in the row of zero.
FLAT = 1e-3
#: A share below this is not drawn: one direction of a million.
FAINTEST = 1e-6


def spectral_density(run: Run, ax: Axes) -> None:
    """Draw the share of the eigenvalues by size, both on logarithmic scales."""
    with panel(run, ax, "Spectrum", unit="share of the eigenvalues", needs="flat_directions") as p:
        if p.missing:
            return
        table = density_table(run)
        if table is None:
            p.line("flat_directions", label="flat directions")
        else:
            p.heat(table, HeatScale(FAINTEST, 1.0, log=True))
        p.read(verdict(run))


def density_table(run: Run) -> LayerTable | None:
    """Return the share of the eigenvalues by size (rows, the largest first) and step, or None without any finite one."""
    found = nodes_and_weights(run)
    if found is None:
        return None
    steps, nodes, weights = found
    finite = np.isfinite(nodes) & np.isfinite(weights)
    largest = float(np.abs(nodes[finite]).max()) if finite.any() else 0.0
    if not 0 < largest < 1e300:
        return None
    lowest = float(nodes[finite].min())
    edges = size_edges(largest, -lowest / largest if lowest < 0 else 0.0)
    kernel = np.exp(-0.5 * (np.subtract.outer(np.arange(len(edges) - 1), np.arange(len(edges) - 1)) / SPREAD) ** 2)
    kernel /= kernel.sum(axis=0)  # the ends keep what is theirs
    values = np.zeros((len(edges) - 1, len(steps)))
    for column in range(len(steps)):
        known = finite[column]
        values[:, column] = kernel @ np.histogram(nodes[column][known], edges, weights=weights[column][known])[0]
    values, edges = values[::-1], edges[::-1]
    bad = ~finite.any(axis=1)
    values[:, bad] = np.nan
    # What is empty is left out, not drawn as little.
    known = (values >= FAINTEST) | np.isnan(values)
    names = [_name(high, low) for high, low in itertools.pairwise(edges)]
    return LayerTable(tuple(names), steps, values, known)


def nodes_and_weights(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return steps, nodes and weights, the latter (steps, nodes), or None if the run has no such arrays."""
    try:
        steps, values = run.series("spectral_density")
    except (KeyError, ValueError):
        return None
    if values.ndim != 3 or values.shape[1] != 2 or not len(steps):
        return None
    return steps, values[:, 0], values[:, 1]


def size_edges(largest: float, negative: float) -> np.ndarray:
    """Return the edges of the rows, rising: logarithmic on both sides of a row around zero.

    Args:
        largest: The largest magnitude.
        negative: The magnitude of the most negative eigenvalue as a share of it; 0: there is none.
    """
    up = np.geomspace(FLAT, 1.0, ROWS // 2 + 1)
    down = up[: int(np.searchsorted(up, negative)) + 1] if negative > FLAT else up[:1]
    edges = np.concatenate([-down[::-1], up]) * largest
    edges[0], edges[-1] = edges[0] * (1 + 1e-9), edges[-1] * (1 + 1e-9)  # rounding must not lose the outermost
    return edges


def verdict(run: Run) -> Verdict | None:
    """Say what share of the directions is flat, and how far the outliers reach."""
    if broken := not_finite(run, "flat_directions"):
        return broken
    flat = recent(run, "flat_directions", 5)
    if flat is None:
        return None
    found = nodes_and_weights(run)
    last = np.array([]) if found is None else found[1][-1][np.isfinite(found[1][-1])]
    reach = f", the rest from {short(float(last[0]), 2)} to {short(float(last[-1]), 2)}" if len(last) > 1 else ""
    return Verdict(f"{percent(flat)} are flat{reach}")


def _name(high: float, low: float) -> str:
    middle = math.copysign(math.sqrt(abs(high * low)), high) if high * low > 0 else 0.0
    return short(middle, 2)
