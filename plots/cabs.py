"""CABS: the batch size that suits the learning rate (Balles 2017), beside the one in use."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import elide, optimizer_name, recent
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Batches within this factor of the rule are as good as it.
NEAR = 4.0


def cabs(run: Run, ax: Axes) -> None:
    """Draw the batch size of the rule and the one in use on a logarithmic axis; what is near it is shaded."""
    with panel(run, ax, "CABS batch size", unit="samples", scale="log", needs="cabs") as p:
        if p.missing:
            return
        p.line("cabs", label="CABS")
        p.line("batch_size", label="batch", colour=1, dashed=True, smoothed=False)
        batch = recent(run, "batch_size")
        if batch and optimizer_name(run) == "SGD":
            p.healthy(batch / NEAR, NEAR * batch)
            p.level("too small", NEAR * batch, "above: batch too small")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare the batch in use with the rule, for plain gradient descent, for which it was made."""
    if broken := not_finite(run, "cabs"):
        return broken
    now, batch = recent(run, "cabs"), recent(run, "batch_size")
    if now is None:
        return None
    optimizer = optimizer_name(run)
    if optimizer and optimizer != "SGD":
        return Verdict(f"{short(now, 2)}; the rule is for plain SGD, not {elide(optimizer, 20)}")
    if not batch:
        return Verdict(f"{short(now, 2)} samples suit the learning rate")
    if batch < now / NEAR:
        return Verdict(f"batch {short(batch)}, {short(now, 2)} would suit the learning rate", "watch")
    if batch > NEAR * now:
        return Verdict(f"batch {short(batch)} is larger than needed, {short(max(now, 1.0), 2)} would do", "neutral")
    return Verdict(f"batch {short(batch)} suits the learning rate, the rule says {short(now, 2)}", "healthy")
