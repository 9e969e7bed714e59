"""Gradient noise scale: the batch size at which noise and signal of the gradient balance (McCandlish 2018)."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import broken_since, recent, scalars
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run


def gradient_noise_scale(run: Run, ax: Axes) -> None:
    """Draw the noise scale with its standard error, and the batch size it is to be compared with."""
    with panel(run, ax, "Noise scale", unit="samples", scale="log", needs="gradient_noise_scale") as p:
        if p.missing:
            return
        steps, values = scalars(run, "gradient_noise_scale")
        errors = _standard_errors(run, steps)
        if np.isfinite(errors).any():
            # Below a tenth of the value the band would only say that the lower end is unknown, and squeeze the rest.
            p.band("error", steps, np.maximum(values - errors, 0.1 * values), values + errors)
        p.line("gradient_noise_scale", label="noise")
        p.line("batch_size", label="batch", colour=1, dashed=True, smoothed=False)
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare the batch size with the noise scale; suggest the power of two next to it where noise dominates."""
    broken = broken_since(run, "gradient_noise_scale")
    if broken:
        return Verdict(f"{short(broken[1])} since step {broken[0]}", "trouble")
    scale, batch = recent(run, "gradient_noise_scale", 20), recent(run, "batch_size")
    if scale is None:
        return None
    if scale <= 0:
        return Verdict("the signal is too weak beside the noise to be estimated", "watch")
    if batch is None:
        return Verdict(f"noise and signal balance at {short(scale, 2)} samples")
    if batch < 0.5 * scale:
        return Verdict(f"noise dominates: batch {short(batch)}, suggested {_power_of_two(scale)}", "watch")
    if batch > 8 * scale:
        return Verdict(f"batch {short(batch)} is larger than needed, {_power_of_two(scale)} would do", "neutral")
    return Verdict(f"batch {short(batch)} suits a noise scale of {short(scale, 2)}", "healthy")


def _standard_errors(run: Run, steps: np.ndarray) -> np.ndarray:
    how = run.how("gradient_noise_scale")
    found = [how.get(int(step), {}).get("standard_error") for step in steps]
    return np.array([error if isinstance(error, (int, float)) else math.nan for error in found], dtype=np.float64)


def _power_of_two(value: float) -> str:
    return short(2.0 ** max(0, round(math.log2(value))), 6)
