"""Trust ratio: how much of what a step promised on its own mini-batch it kept."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.numbers import percent
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Trust-region methods shorten their steps below the first and may lengthen them above the second.
SHORTEN_BELOW, LENGTHEN_ABOVE = 0.25, 0.75
#: Where next to nothing was promised the ratio is of two small numbers: it is drawn no further than this.
REACH = (-1.0, 3.0)


def trust_ratio(run: Run, ax: Axes) -> None:
    """Draw the trust ratio, held to between -1 and 3, and where a step kept what it promised."""
    with panel(run, ax, "Trust ratio", unit="actual / predicted decrease", needs="trust_ratio") as p:
        if p.missing:
            return
        steps, ratios = scalars(run, "trust_ratio")
        p.curve("trust_ratio", steps, np.where(np.isfinite(ratios), np.clip(ratios, *REACH), ratios), smoothed=True)
        p.healthy(LENGTHEN_ABOVE, 2 - LENGTHEN_ABOVE)
        p.level("too long", SHORTEN_BELOW, "too long below")
        p.level("as promised", 1.0, "as promised", trouble=False)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare what the last measured steps gained with what they promised, all together: single ratios are noisy."""
    if broken := not_finite(run, "trust_ratio"):
        return broken
    values = scalars(run, "trust_ratio")[1]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    promised, kept = _recent_sum(run, "predicted_decrease"), _recent_sum(run, "actual_decrease")
    if promised is None or kept is None:
        promised, kept = 1.0, float(np.median(values[-10:]))
    if promised <= 0:
        return Verdict("steps do not go downhill on their own batch, even by the model", "watch")
    share = kept / promised
    if share < 0:
        return Verdict("steps go up where the model promised a gain: far too long", "trouble")
    text = f"keeps {percent(share)} of what it promises"
    if share < SHORTEN_BELOW:
        return Verdict(f"{text}: steps are too long", "trouble")
    return Verdict(text, "healthy" if share >= LENGTHEN_ABOVE else "watch")


def _recent_sum(run: Run, name: str, count: int = 10) -> float | None:
    values = scalars(run, name)[1][-count:]
    values = values[np.isfinite(values)]
    total = math.fsum(np.clip(values, -1e300, 1e300)) if len(values) else math.nan
    return total if math.isfinite(total) else None
