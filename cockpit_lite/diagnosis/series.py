"""Small robust statistics over readings; plain Python, since rules run inside the training loop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def finite(values: Sequence[float]) -> list[float]:
    """Return the values that are numbers."""
    return [value for value in values if math.isfinite(value)]


def median(values: Sequence[float]) -> float:
    """Return the median of the finite values; NaN if there are none."""
    numbers = finite(values)
    return statistics.median(numbers) if numbers else math.nan


def slope_per_place(values: Sequence[float]) -> float:
    """Return the Theil-Sen slope over the places 0, 1, 2, ...: the median slope of all pairs, which outliers cannot move."""
    pairs = [
        (values[later] - values[earlier]) / (later - earlier)
        for earlier in range(len(values))
        for later in range(earlier + 1, len(values))
    ]
    return statistics.median(pairs) if pairs else 0.0


def rank_correlation(values: Sequence[float]) -> float:
    """Return Spearman's rank correlation of the values with their place: 1 rising throughout, -1 falling throughout."""
    count = len(values)
    if count < 2:
        return 0.0
    order = sorted(range(count), key=values.__getitem__)
    squared = sum((place - rank) ** 2 for rank, place in enumerate(order))
    return 1 - 6 * squared / (count * (count**2 - 1))
