"""Loss: the training loss, and whatever losses and accuracies the user logged beside it."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

_STEPS_TO_JUDGE = 10
_STEPS_TO_EXPECT_MORE = 50


def loss(run: Run, ax: Axes) -> None:
    """Draw the training loss, other ``*loss`` readings with it, and ``*accuracy`` readings on the right axis."""
    others = [name for name in run.names if name.endswith("loss") and name != "loss" and "/" not in name]
    accuracies = [name for name in run.names if name.endswith("accuracy") and "/" not in name]
    with panel(run, ax, "Loss", scale="auto", needs=["loss", *others, *accuracies]) as p:
        p.line("loss", label="training")
        for index, name in enumerate(others):
            p.line(name, label=_spoken(name.removesuffix("loss")), colour=1 + index, smoothed=False)
        for index, name in enumerate(accuracies):
            p.line(name, label=f"{_spoken(name)} →", colour=1 + len(others) + index, right=True, smoothed=False)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say where the loss is and whether it falls: its last tenth against the first and the one before, beyond their scatter."""
    if broken := not_finite(run, "loss", subject="loss is"):
        return broken
    values = scalars(run, "loss")[1]
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    if len(values) < _STEPS_TO_JUDGE:
        return Verdict(f"loss {short(float(values[-1]))}; too few steps to see a trend")
    tail = max(len(values) // 10, _STEPS_TO_JUDGE // 2)
    last, before = values[-tail:], values[-2 * tail : -tail]
    first, now = float(np.median(values[:tail])), float(np.median(last))
    scatter = math.sqrt((float(np.var(last)) + float(np.var(before))) / tail)
    change = now - float(np.median(before))
    course = f"loss {short(now)}, at the start {short(first)}"
    early_scatter = math.sqrt((float(np.var(values[:tail])) + float(np.var(last))) / tail)
    if now > first + 3 * early_scatter:
        return Verdict(f"{course}: worse than at the start", "trouble")
    if change > 3 * scatter:
        return Verdict(f"{course}; rising lately", "watch")
    if now > first - 3 * early_scatter:
        return Verdict(f"{course}: has not fallen yet", "watch" if len(values) >= _STEPS_TO_EXPECT_MORE else "neutral")
    return Verdict(f"{course}; {'still falling' if change < -scatter else 'level lately'}", "healthy")


def _spoken(name: str) -> str:
    return name.replace("_", " ").strip()
