"""Step time: how long a training step takes, and what share of it is spent on measuring."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import cost, recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run


def step_time(run: Run, ax: Axes) -> None:
    """Draw milliseconds a step, and the overhead in percent on the right axis."""
    with panel(run, ax, "Step time", unit="ms", scale="auto", needs=["step_time", "overhead"]) as p:
        steps, seconds = scalars(run, "step_time")
        if len(steps):
            p.curve("step_time", steps, 1e3 * seconds, label="step", smoothed=True)
        steps, shares = scalars(run, "overhead")
        if len(steps):
            p.curve("overhead", steps, 100 * shares, label="measuring, % →", colour=1, right=True, smoothed=True)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how long a step takes and what measuring costs."""
    seconds, share = recent(run, "step_time"), recent(run, "overhead")
    words = [] if seconds is None else [f"{short(1e3 * seconds)} ms a step"]
    if share is not None:
        words.append(cost(share))
    return Verdict(", ".join(words)) if words else None
