"""Curvature along the gradient: the two terms of the step's Taylor expansion, L(theta - e g) ~ L - e g'g + 1/2 e^2 g'Hg.

Where the second term reaches half of the first, the step is as long as it should be; where they meet, the gain is eaten up;
beyond, the expansion predicts that the step makes the loss worse. If they stay close while nothing improves, the problem is
ill-conditioned.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent, scalars
from cockpit_lite.plots.max_eigenvalue import stability_limit
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

_GAIN, _PRICE = "taylor_gradient_term", "taylor_curvature_term"


def curvature_along_gradient(run: Run, ax: Axes) -> None:
    """Draw both Taylor terms on one logarithmic axis; without them the curvature itself under 2 / learning rate."""
    with panel(run, ax, "Gain and curvature", scale="log", needs=[_GAIN, _PRICE, "curvature_along_gradient"]) as p:
        if p.missing:
            return
        if len(scalars(run, _GAIN)[0]) and len(scalars(run, _PRICE)[0]):
            p.line(_GAIN, label="e·g'g")
            p.line(_PRICE, label="½e²·g'Hg", colour=1)
        else:
            p.line("curvature_along_gradient", label="g'Hg / g'g")
            steps, limits = stability_limit(run)
            if len(steps):
                p.limit("stability", steps, limits, "2 / learning rate")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Say what share of the gain the curvature eats, over the last measurements."""
    if broken := not_finite(run, _GAIN, _PRICE):
        return broken
    share = eaten_share(run)
    if share is None:
        curvature = recent(run, "curvature_along_gradient")
        return None if curvature is None else Verdict(f"curvature {short(curvature)} along the gradient")
    if share < 0:
        return Verdict("curves downwards along the gradient: the step gains more than expected")
    text = f"curvature eats {percent(share)} of the gain" if share < 10 else f"curvature is {short(share, 2)} times the gain"
    if share >= 1:
        return Verdict(f"{text}: the step makes it worse", "trouble")
    if share > 0.5:
        return Verdict(f"{text}: longer than the best step", "watch")
    return Verdict(text, "healthy")


def eaten_share(run: Run, count: int = 10) -> float | None:
    """Return the median of price over gain over the last ``count`` steps where both are known; None without any."""
    gain_steps, gains = scalars(run, _GAIN)
    price_steps, prices = scalars(run, _PRICE)
    _, of_gains, of_prices = np.intersect1d(gain_steps, price_steps, return_indices=True)
    gains, prices = gains[of_gains], prices[of_prices]
    usable = np.isfinite(gains) & np.isfinite(prices) & (gains > 0)
    return float(np.median((prices[usable] / gains[usable])[-count:])) if usable.any() else None
