"""Attention: how evenly the sharpest layer attends, and how large the products of queries and keys have become."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Below this share of the entropy of equal weights a query attends to a single key.
LIMIT = 0.1


def attention(run: Run, ax: Axes) -> None:
    """Draw the entropy of the attention weights, and the largest attention logit on the right axis."""
    with panel(run, ax, "Attention", unit="of equal weights", needs=["attention_entropy", "attention_logit"]) as p:
        if not p.missing:
            p.line("attention_entropy", label="entropy")
            p.line("attention_logit", label="largest logit →", colour=1, dashed=True, right=True)
            p.healthy(LIMIT, 1.0)
            p.level("limit", LIMIT, f"limit {percent(LIMIT)}")
            p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the heads still choose."""
    for name in ("attention_entropy", "attention_logit"):
        if broken := not_finite(run, name):
            return broken
    entropy, logit = recent(run, "attention_entropy"), recent(run, "attention_logit")
    if entropy is None:
        return None if logit is None else Verdict(f"largest logit {short(logit, 2)}")
    largest = "" if logit is None else f", largest logit {short(logit, 2)}"
    if entropy < LIMIT:
        return Verdict(f"entropy {percent(max(entropy, 0.0))}: one key each{largest}", "watch")
    return Verdict(f"entropy {percent(min(entropy, 1.0))}{largest}", "healthy")
