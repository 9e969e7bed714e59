"""Numbers for pictures: few points that look like many, smooth curves, short labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.ticker import Formatter, Locator, MaxNLocator

#: Above this many points a series is decimated; a panel is never as many pixels wide.
MOST_POINTS = 2_000


def decimate(steps: np.ndarray, values: np.ndarray, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Return at most ``most`` points that draw like the whole series: least and greatest value per bin of steps.

    A spike of a single step survives. A bin without a finite value becomes a gap.
    """
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(steps[0], steps[-1], most // 2 + 1)[:-1]
    starts = np.searchsorted(steps, edges)
    starts = starts[np.append(True, starts[1:] > starts[:-1])]
    ends = np.append(starts[1:], len(steps)) - 1
    finite = np.where(np.isfinite(values), values, np.nan)
    low, high = np.fmin.reduceat(finite, starts), np.fmax.reduceat(finite, starts)
    return np.column_stack([steps[starts], steps[ends]]).ravel(), np.column_stack([low, high]).ravel()


def smooth(values: np.ndarray, log: bool = False) -> np.ndarray:
    """Return a centred running mean over a fortieth of the series (of logarithms where ``log``); gaps stay gaps.

    Means are taken over what is inside the series and finite, so neither the ends nor a NaN pull the curve away.
    """
    usable = np.isfinite(values) & (values > 0) if log else np.isfinite(values)
    numbers = np.where(usable, values, 1.0)
    numbers = np.where(usable, np.log(numbers) if log else numbers, 0.0)
    reach = max(2, len(values) // 80)
    index = np.arange(len(values))
    first, last = np.maximum(index - reach, 0), np.minimum(index + reach + 1, len(values))
    sums, counts = np.append(0.0, np.cumsum(numbers)), np.append(0, np.cumsum(usable))
    count = counts[last] - counts[first]
    means = (sums[last] - sums[first]) / np.maximum(count, 1)
    return np.where(usable, np.exp(means) if log else means, np.nan)


def averaged(steps: np.ndarray, values: np.ndarray, most: int, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return at most ``most`` points: means (geometric ones where ``log``) of neighbours, at the last step of each.

    Groups are of as many points each; a group without a value that can be drawn becomes a gap.

    >>> averaged(np.arange(5), np.array([1.0, 3.0, np.nan, 5.0, 7.0]), 3)
    (array([1, 3, 4]), array([2., 5., 7.]))
    """
    if len(values) <= most:
        return steps, values
    starts = np.arange(0, len(values), math.ceil(len(values) / most))
    ends = np.append(starts[1:], len(values)) - 1
    usable = np.isfinite(values) & (values > 0) if log else np.isfinite(values)
    numbers = np.where(usable, np.log(np.where(usable, values, 1.0)) if log else values, 0.0)
    counts = np.add.reduceat(usable, starts, dtype=np.int64)
    means = np.where(counts > 0, np.add.reduceat(numbers, starts) / np.maximum(counts, 1), np.nan)
    return steps[ends], np.exp(means) if log else means


def short(value: float, digits: int = 3) -> str:
    """Return a number as short as a person would write it: ``0.012``, ``1.2e-5``, ``350``, ``12k``.

    >>> short(0.0123), short(1.2345e-5), short(12345), short(1e-3), short(float("nan"))
    ('0.0123', '1.23e-5', '12.3k', '0.001', 'NaN')
    >>> short(380_000, 2), short(15_000, 2)
    ('380k', '15k')
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    size = abs(value)
    if 1e4 <= size < 1e6:
        return f"{float(f'{value / 1e3:.{digits}g}'):.0f}k" if size >= 10 ** (digits + 2) else f"{value / 1e3:.{digits}g}k"
    if size and not 1e-3 <= size < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.0f}" if size >= 10 ** (digits - 1) else f"{rounded:g}"


def percent(share: float) -> str:
    """Return a share as a percentage.

    >>> percent(0.031), percent(0.5), percent(0.0004)
    ('3.1 %', '50 %', '0.04 %')
    """
    return f"{short(100 * share, 2)} %"


class ShortLabels(Formatter):
    """Tick labels by :func:`short`."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of one tick."""
        return short(float(x), 4)


class StepLabels(Formatter):
    """Tick labels of the step axis; the first one says what is counted, which saves an axis label in every gauge."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of one tick."""
        label = short(float(x), 4)
        return f"step {label}" if pos == 0 else label


class StepTicks(MaxNLocator):
    """A few round whole steps, from 0 on."""

    def __init__(self) -> None:
        super().__init__(nbins=6, integer=True, steps=[1, 2, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks inside the view."""
        return _inside(super().tick_values(vmin, vmax), max(vmin, 0.0), vmax)


class ValueTicks(MaxNLocator):
    """A few round values."""

    def __init__(self) -> None:
        super().__init__(nbins=4, steps=[1, 2, 2.5, 5, 10])

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks inside the view."""
        return _inside(super().tick_values(vmin, vmax), vmin, vmax)


class LogTicks(Locator):
    """Ticks of a logarithmic axis that are never fewer than two: powers of ten, else 1-2-5, else round values."""

    most = 5

    def __call__(self) -> Sequence[float]:
        """Return the ticks of the axis' view."""
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        return self.tick_values(low, high)

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        """Return the ticks inside the view."""
        vmin, vmax = min(vmin, vmax), max(vmin, vmax)
        if not (vmin > 0 and math.isfinite(vmax)):
            return []
        low, high = math.log10(vmin), math.log10(vmax)
        if high - low >= 2:
            stride = math.ceil((high - low) / self.most)
            exponents = np.arange(math.ceil(low / stride) * stride, math.floor(high) + 1, stride)
            return list(10.0**exponents)
        decades = 10.0 ** np.arange(math.floor(low), math.ceil(high) + 1)
        for factors in ((1, 3), (1, 2, 5)):
            ticks = _inside(np.outer(decades, factors).ravel(), vmin, vmax)
            if len(ticks) >= 3:
                return ticks
        return _inside(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]).tick_values(vmin, vmax), vmin, vmax)


def _inside(ticks: Iterable[float], low: float, high: float) -> list[float]:
    slack = 1e-9 * (high - low)
    return [float(tick) for tick in ticks if low - slack <= tick <= high + slack]
