"""Conflicting samples: the share of the batch whose own loss the step would raise."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Pure noise puts half of the samples against the step; from here on it is near that.
LIMIT, NOISE = 0.4, 0.5


def conflicting_samples(run: Run, ax: Axes) -> None:
    """Draw the share; shaded is what most batches have, half is what noise alone gives."""
    with panel(run, ax, "Conflicting samples", unit="share of the batch", needs="conflicting_samples") as p:
        if not p.missing:
            p.line("conflicting_samples")
            p.healthy(0.0, LIMIT)
            p.level("noise", NOISE, "noise alone 50 %")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare with what pure noise gives."""
    # A sample whose gradient is not a number is counted as none in conflict.
    if broken := not_finite(run, "conflicting_samples", "grad_norm", subject="gradient is"):
        return broken
    now = recent(run, "conflicting_samples")
    if now is None:
        return None
    text = f"the step raises the loss of {percent(now)} of the samples"
    if now > NOISE:
        return Verdict(f"{text}: noise dominates", "watch")
    if now > LIMIT:
        return Verdict(f"{text}, noise 50 %")
    return Verdict(text, "healthy")
