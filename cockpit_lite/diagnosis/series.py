"""Small robust statistics over readings; plain Python, since rules run inside the training loop."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence


def finite(values: Sequence[float]) -> list[float]:
    """Return the values that are numbers."""
    return list(filter(math.isfinite, values))


def median(values: Sequence[float]) -> float:
    """Return the median of the finite values; NaN if there are none."""
    numbers = finite(values)
    return statistics.median(numbers) if numbers else math.nan


#: Up to so many values all pairs are taken; their number grows with the square.
_ALL_PAIRS = 24


def slope_per_place(values: Sequence[float]) -> float:
    """Return Theil's slope over the places 0, 1, 2, ...: the median slope of pairs, which outliers cannot move.

    Of many values only pairs half their number apart are taken (Theil's incomplete method), which costs little and loses little.
    """
    count = len(values)
    if count <= _ALL_PAIRS:
        pairs = list(itertools.combinations(range(count), 2))
    else:
        pairs = [(earlier, earlier + count // 2) for earlier in range(count - count // 2)]
    slopes = [(values[later] - values[earlier]) / (later - earlier) for earlier, later in pairs]
    return statistics.median(slopes) if slopes else 0.0


def spread(values: Sequence[float]) -> float:
    """Return the difference between the highest and the lowest value; 0 if there are none."""
    return max(values) - min(values) if values else 0.0


def rank_correlation(values: Sequence[float]) -> float:
    """Return Spearman's rank correlation of the values with their place: 1 rising throughout, -1 falling throughout."""
    count = len(values)
    if count < 2:
        return 0.0
    squared = 0
    for sign in (1, -1):  # equal values once in rising and once in falling order, so that they count as neither
        order = sorted(range(count), key=lambda place, sign=sign: (values[place], sign * place))  # type: ignore[misc]
        squared += sum((place - rank) ** 2 for rank, place in enumerate(order))
    return 1 - 3 * squared / (count * (count**2 - 1))
