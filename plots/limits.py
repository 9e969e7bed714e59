"""Limits of a value axis: all of the data, and of the drawn limits those within reach."""

from __future__ import annotations

import math

import numpy as np


def value_limits(found: list[np.ndarray], wishes: list[float], log: bool) -> tuple[float, float]:
    """Return limits that hold all data, and the limits and references that lie within reach of it."""
    found = [values for values in found if len(values)]
    if not found:
        return (0.1, 10.0) if log else (0.0, 1.0)
    low, high = float(min(values.min() for values in found)), float(max(values.max() for values in found))
    low, high = float(np.clip(low, -1e300, 1e300)), float(np.clip(high, -1e300, 1e300))
    if log:
        low, high = math.log10(max(low, 1e-300)), math.log10(max(high, 1e-300))
        wishes = [math.log10(value) for value in wishes if value > 0]
    reach = max(1.0, 0.5 * (high - low)) if log else max(high - low, 0.5 * max(abs(low), abs(high)))
    for value in wishes:
        if low - reach <= value <= high + reach:
            low, high = min(low, value), max(high, value)
    if log:
        middle, half = (low + high) / 2, max(0.5 * (high - low), 0.15)
        return 10 ** max(middle - 1.12 * half, -305.0), 10 ** min(middle + 1.12 * half, 305.0)
    if low == high == 0:
        return -0.07, 1.07  # counts and shares that never left zero; nothing says that they could be far below it
    if low == high:
        low, high = low - (0.1 * abs(low) or 1.0), high + (0.1 * abs(high) or 1.0)
    margin = 0.07 * (high - low)
    bottom = 0.0 if low >= 0 and low < 0.35 * high else low - margin
    return bottom, high + margin
