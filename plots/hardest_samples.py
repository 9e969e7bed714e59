"""Hardest samples: whether one sample of the batch outweighs the others, and which ones are the hardest."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import broken_since, scalars
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: From here on one sample has as much of the squared gradient norm as all others together.
LIMIT = 0.5

#: In batches of fewer samples one has that much by chance.
FEWEST = 8

#: In this share of the last measured steps it is no chance any more.
OFTEN = 0.25

#: How many samples are named.
NAMED = 3


def hardest_samples(run: Run, ax: Axes) -> None:
    """Draw the share of the hardest sample; up to the limit, where it has as much as all others, is shaded."""
    with panel(run, ax, "Hardest sample", unit="share of the squared gradient", needs="hardest_samples") as p:
        if p.missing:
            return
        p.line("hardest_samples")
        p.healthy(0.0, LIMIT)
        p.level("limit", LIMIT, "as much as all others")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Name the hardest samples of the last measured batch, or the last one that outweighed all others if that happens often."""
    steps, shares = scalars(run, "hardest_samples")
    if not len(shares):
        return None
    broken = broken_since(run, "hardest_samples")
    if broken:
        names = _named(run, broken[0], 1)
        return Verdict(f"{short(broken[1])} since step {broken[0]}" + (f", first in {names}" if names else ""), "trouble")
    batch = scalars(run, "batch_size")[1]
    heavy = steps[-20:][shares[-20:] >= LIMIT]
    if len(heavy) >= OFTEN * len(steps[-20:]) and (not len(batch) or batch[-1] >= FEWEST):
        last = int(heavy[-1])
        return Verdict(f"{_named(run, last, 1) or 'one sample'} outweighs all others at step {last}: look at it", "watch")
    names = _named(run, int(steps[-1]), NAMED)
    return Verdict(f"step {steps[-1]}: {names}" if names else f"{percent(float(shares[-1]))} in one sample", "healthy")


def _named(run: Run, step: int, most: int) -> str:
    """Return the samples with the largest gradients at a step in words, with their losses where these are known."""
    try:
        steps, tables = run.series("hardest_by_gradient")
    except (KeyError, ValueError):
        return ""
    place = int(np.searchsorted(steps, step))
    if tables.ndim != 3 or tables.shape[2] != 3 or place == len(steps) or steps[place] != step:
        return ""
    found = [row for row in tables[place][:most] if math.isfinite(row[0])]
    losses = [f" (loss {short(row[1], 2)})" if math.isfinite(row[1]) else "" for row in found]
    return ", ".join(f"#{int(row[0])}{loss}" for row, loss in zip(found, losses, strict=True))
