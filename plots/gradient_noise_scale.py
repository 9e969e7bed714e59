"""Gradient noise scale: the batch size at which noise and signal of the gradient balance (McCandlish 2018)."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes

from cockpit_lite.plots.facts import at_steps, broken_since, recent, scalars, standard_errors
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: Below a batch this share of the noise scale a step is mostly noise; above that many times it samples are wasted.
TOO_SMALL, TOO_LARGE = 0.5, 8.0


def gradient_noise_scale(run: Run, ax: Axes) -> None:
    """Draw the noise scale between the ends of its interval; shaded is what suits the batch size in use."""
    with panel(run, ax, "Noise scale", unit="samples", scale="log", needs="gradient_noise_scale") as p:
        if p.missing:
            return
        steps, values = scalars(run, "gradient_noise_scale")
        low, high = _ends(run, steps, values)
        if np.isfinite(high).any():
            # Below a tenth of the value the band would only say that the lower end is unknown, and squeeze the rest; above
            # thirty times it, that there is no upper end.
            p.band("error", steps, np.maximum(low, 0.1 * values), np.minimum(high, 30 * values), label="95 %")
        p.line("gradient_noise_scale", label="noise")
        p.line("batch_size", label="batch", colour=1, dashed=True, smoothed=False)
        batch = recent(run, "batch_size")
        if batch is not None:
            p.healthy(batch / TOO_LARGE, batch / TOO_SMALL)
            p.level("limit", batch / TOO_SMALL, "above it noise dominates")
        p.read(verdict(run))


def verdict(run: Run) -> Verdict | None:
    """Compare the batch size with the noise scale; suggest the power of two next to it, and say how sure that is."""
    broken = broken_since(run, "gradient_noise_scale")
    # The last value is an average over many steps already, and the one that the interval belongs to.
    scale, batch = recent(run, "gradient_noise_scale", 1), recent(run, "batch_size")
    if broken and math.isinf(broken[1]):
        return Verdict(f"noise drowns the gradient since step {broken[0]}: no batch size can be told", "watch")
    if broken:
        return Verdict(f"{short(broken[1])} since step {broken[0]}", "trouble")
    if scale is None:
        return None
    if scale <= 0:
        return Verdict("the signal is too weak beside the noise to be estimated", "watch")
    if batch is None:
        return Verdict(f"noise and signal balance at {short(scale, 2)} samples")
    between = _between(run)
    if batch < TOO_SMALL * scale:
        return Verdict(f"noise dominates: batch {short(batch)}, suggested {_power_of_two(scale)}{between}", "watch")
    if batch > TOO_LARGE * scale:
        return Verdict(f"batch {short(batch)} is larger than needed, {_power_of_two(scale)} would do{between}", "neutral")
    return Verdict(f"batch {short(batch)} suits a noise scale of {short(scale, 2)}{between}", "healthy")


def _between(run: Run) -> str:
    """Return the interval of the last step in words, if there is one."""
    low, high = (scalars(run, f"suggested_batch_size_{end}")[1] for end in ("lower", "upper"))
    if (
        not len(low)
        or not len(high)
        or not math.isfinite(low[-1])
        or math.isnan(high[-1])
        or (low[-1] <= 0 and math.isinf(high[-1]))
    ):
        return ""
    return f" (at least {short(low[-1], 2)})" if math.isinf(high[-1]) else f" ({short(low[-1], 2)} to {short(high[-1], 2)})"


def _ends(run: Run, steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval; of a run without them one standard error to either side."""
    low, high = (at_steps(run, f"suggested_batch_size_{end}", steps) for end in ("lower", "upper"))
    if np.isfinite(low).any():
        return low, high
    errors = standard_errors(run, "gradient_noise_scale", steps)
    return values - errors, values + errors


def _power_of_two(value: float) -> str:
    return short(2.0 ** min(max(0, round(math.log2(value))), 1023), 6)
