"""Histogram of per-sample gradient elements over the steps: their magnitudes, and how many are zero."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from cockpit_lite.plots.histograms import Histograms, histograms, quantile
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import opened
from cockpit_lite.plots.strip import Strip
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: Shares of NaN or of elements beyond the last bin from which there is trouble: fewer may be rounding.
BROKEN, BEYOND = 1e-3, 1e-3
#: Share of zeros from which little of the network learns.
ZEROS = 0.9
#: Factor between the layers' median magnitudes from which some learn and others do not.
APART = 1e3


def grad_hist_1d(run: Run, ax: Axes) -> None:
    """Draw the histograms of the whole model over the steps, and the last ones beside them."""
    with opened(Strip, run, ax, "Gradient elements", unit="of samples", needs="grad_hist_1d") as p:
        found = histograms(run, "grad_hist_1d")
        if p.missing or found is None:
            return
        p.histograms(found)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say what is out of range, how much is zero, how far apart the layers are, or how large the elements are."""
    found = histograms(run, "grad_hist_1d")
    if found is None or len(found.bins) != 1:
        return None
    (bins,), last = found.bins, found.last()
    broken, beyond, zeros = 1 - float(last.sum()), float(last[0] + last[-1]), float(last[bins.count // 2])
    if broken > BROKEN:
        return Verdict(f"{percent(broken)} of the elements are NaN", "trouble")
    if beyond > BEYOND:
        return Verdict(f"{percent(beyond)} of the elements are beyond 1e{bins.high}", "trouble")
    if zeros > ZEROS:
        return Verdict(f"{percent(zeros)} of the elements are zero: little of the network learns", "watch")
    apart = layers_apart(run)
    if apart is not None and apart > APART:
        return Verdict(f"elements of the layers are {short(apart)} times apart", "watch")
    now, first = quantile(last, bins, 0.5), quantile(found.shares[:5].mean(axis=0), bins, 0.5)
    if now is None or first is None:
        return None
    decades = _decades(found)
    spread = "" if decades is None else f", 80 % within {short(decades, 2)} decades"
    return Verdict(f"median {short(now, 2)} (first {short(first, 2)}){spread}, {percent(zeros)} zero")


def layers_apart(run: Run) -> float | None:
    """Return the factor between the greatest and the least median magnitude of the parameters, or None."""
    medians = []
    for layer in run.layers("grad_hist_1d"):
        found = histograms(run, "grad_hist_1d", layer)
        median = None if found is None else quantile(found.last(), found.bins[0], 0.5)
        if median is not None and math.isfinite(median):
            medians.append(median)
    return max(medians) / min(medians) if len(medians) > 1 else None


def _decades(found: Histograms) -> float | None:
    low, high = (quantile(found.last(), found.bins[0], share) for share in (0.1, 0.9))
    return None if not low or high is None or math.isinf(high) else math.log10(high / low)
