"""Label noise: which share of the labels looks drawn by lot, beside the share that is predicted."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: A share that stays above this while half of the labels are predicted is no hard task.
LIMIT, LEARNT = 0.03, 0.5


def label_noise(run: Run, ax: Axes) -> None:
    """Draw the share of labels that look drawn by lot, which falls as the net learns, and the accuracy on the batch."""
    with panel(run, ax, "Label noise", unit="share of the labels", needs="label_noise") as p:
        if not p.missing:
            p.line("label_noise", label="by lot")
            p.line("batch_accuracy", label="predicted", colour=1, dashed=True)
            p.healthy(0.0, LIMIT)
            p.level("limit", LIMIT, f"limit {percent(LIMIT)}")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say how many labels look wrong, once the net has learnt enough to tell."""
    if broken := not_finite(run, "label_noise"):
        return broken
    now, accuracy = recent(run, "label_noise", 5), recent(run, "batch_accuracy", 5)
    if now is None:
        return None
    if accuracy is not None and not accuracy > LEARNT:
        return Verdict("too little is learnt yet to tell wrong labels from hard ones")
    if now > LIMIT:
        return Verdict(f"about {percent(min(now, 1.0))} of the labels look wrong", "watch")
    return Verdict(f"{percent(max(now, 0.0))} of the labels look wrong", "healthy")
