"""Gradient signal-to-noise ratio: how much the samples agree on the elements of the gradient (Liu 2020)."""

from __future__ import annotations

from matplotlib.axes import Axes

from cockpit_lite.plots.facts import recent
from cockpit_lite.plots.grad_norm import layer_range
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict, not_finite
from cockpit_lite.run import Run

#: Noise alone gives 1 over the batch size; below this many times that there is no agreement to speak of.
NOISE_FACTOR = 1.5


def gsnr(run: Run, ax: Axes) -> None:
    """Draw the mean over the elements with the range over the parameters, and what noise alone would give."""
    with panel(run, ax, "Signal to noise", unit="of gradient elements", scale="log", needs="gsnr") as p:
        if p.missing:
            return
        steps, low, high = layer_range(run, "gsnr")
        if len(steps):
            p.band("layers", steps, low, high, label="layers")
        p.line("gsnr", label="mean")
        noise = _noise(run)
        if noise is not None:
            p.healthy(NOISE_FACTOR * noise, float("inf"))
            p.level("noise", noise, f"noise alone {short(noise, 2)}")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare with what noise alone gives."""
    if broken := not_finite(run, "gsnr"):
        return broken
    now, noise = recent(run, "gsnr"), _noise(run)
    if now is None:
        return None
    if noise is None:
        return Verdict(f"{short(now, 2)} in the mean")
    if now < NOISE_FACTOR * noise:
        return Verdict(f"{short(now, 2)}, noise alone gives {short(noise, 2)}: the samples cancel")
    return Verdict(f"{short(now, 2)}, {short(now / noise, 2)} times what noise gives: the samples agree", "healthy")


def _noise(run: Run) -> float | None:
    batch = recent(run, "batch_size")
    return 1.0 / batch if batch else None
