"""Sharpest directions: whether they stay from one measurement to the next, and how much of the gradient lies in them."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.numbers import percent
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Below this the directions are those of each mini-batch.
STAYS = 0.3


def eigenvector_overlap(run: Run, ax: Axes) -> None:
    """Draw the overlap of the top eigenvectors with the last ones, and the share of the gradient that lies in them."""
    needs = ["eigenvector_overlap", "gradient_in_top_subspace"]
    with panel(run, ax, "Sharpest directions", unit="shares", needs=needs) as p:
        if p.missing:
            return
        p.line("eigenvector_overlap", label="overlap with last")
        p.line("gradient_in_top_subspace", label="of the gradient", colour=1)
        p.healthy(STAYS, 1.0)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say whether the directions stay."""
    if broken := not_finite(run, "eigenvector_overlap", "gradient_in_top_subspace"):
        return broken
    overlap, share = recent(run, "eigenvector_overlap", 5), recent(run, "gradient_in_top_subspace", 5)
    held = "" if share is None else f"they hold {percent(share)} of the gradient"
    if overlap is None:
        return Verdict(held) if held else None
    told = f", {held}" if held else ""
    if overlap < STAYS:
        return Verdict(f"directions change ({percent(overlap)} stays): those of each batch{told}", "watch")
    return Verdict(f"{percent(overlap)} stays{told}", "healthy")
