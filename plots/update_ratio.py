"""Update ratio: length of the step over length of the weights, as a whole and over the layers."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Outside of this range training is usually unstable or stands still; the rule of thumb in its middle is 1e-3.
LOWEST, HIGHEST = 1e-5, 1e-2


def update_ratio(run: Run, ax: Axes) -> None:
    """Draw how much a step changes the weights, on a logarithmic axis with the usual range shaded."""
    layers = [f"update_ratio/{layer}" for layer in run.layers("update_ratio")]
    with panel(run, ax, "Update ratio", unit="step / weights", scale="log", needs=["update_ratio", *layers]) as p:
        if p.missing:
            return
        if len(scalars(run, "update_ratio")[0]):
            p.line("update_ratio")
        else:
            for index, name in enumerate(layers[:4]):
                p.line(name, label=name.removeprefix("update_ratio/"), colour=index)
        p.healthy(LOWEST, HIGHEST)
        p.level("highest", HIGHEST, f"limit {short(HIGHEST)}")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare with the usual range."""
    if broken := not_finite(run, "update_ratio"):
        return broken
    now = recent(run, "update_ratio")
    if now is None:
        return None
    if now > HIGHEST:
        return Verdict(f"{short(now)} of the weights a step: large steps", "watch")
    if now < LOWEST:
        return Verdict(f"{short(now)} of the weights a step: hardly moves", "watch")
    return Verdict(f"{short(now)} of the weights a step, usual is 1e-5 to 0.01", "healthy")
