"""Gradient noise scale: the batch size at which noise and signal of the gradient are equal, and so the one to be suggested.

    gradient_noise_scale = V / ( ||G||^2 - V/N ),   V = 1/(N-1) sum_n ||g_n - G||^2

in samples. The denominator is the unbiased estimate of the squared norm of the true gradient. Both are averaged apart over the
last measured steps before they are divided, since one step's ratio is far too noisy; a denominator that is still not positive
means that the noise drowns the gradient, and the reading is infinite. A batch far below the noise scale wastes steps, one far
above it wastes samples: at the noise scale itself training takes twice the steps that it would take with the full gradient, and
twice the samples that it would take with the smallest batches. ``suggested_batch_size`` is the power of two next to it, and
``suggested_batch_size_lower`` and ``_upper`` are the ends of the interval that holds the noise scale with a confidence of 95 %
(infinite, if all that can be said is that it is larger than the lower one).

The standard error is that of a ratio of means (delta method) over the steps averaged, and falls with the root of their number as
long as the window grows; the interval is Fieller's, which does not take a denominator for known that is not. Steps whose squared
gradients are more than ten times as large as the median of the window do not count: the first ones of a run often are, and
would outweigh all others for as long as they are in the window. A step with NaN or Inf reads NaN and does not
count either. Batch normalisation couples the samples: the value is then conditional on the batch statistics.

Source: McCandlish, Kaplan, Amodei and others, An empirical model of large-batch training, 2018, sections 2.2, 2.3 and appendix A;
Fieller, Some problems in interval estimation, 1954.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from operator import mul
from typing import NamedTuple

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, Instrument, Reading, Readings
from cockpit_lite.probes.moments import stacked
from cockpit_lite.probes.noise import contributions_squared_norms, gradient_squared_norm
from cockpit_lite.step import Step

#: Steps whose squared gradients are so many times as large as the median of the window do not count.
OUTLIER = 10.0

#: Standard errors to either side of a mean of few values that hold 95 %, by number of values less one (Student's distribution).
_FEW = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}


class NoiseScale(NamedTuple):
    """An estimate of the noise scale.

    Attributes:
        value: Infinite where the noise drowns the gradient.
        standard_error: Infinite where there is none.
        lower: Of the interval of 95 % confidence.
        upper: Of the same.
    """

    value: float
    standard_error: float
    lower: float
    upper: float


def noise_and_signal(squared_norms: float, squared_gradient_norm: float, count: int) -> tuple[float, float]:
    """Return numerator V and denominator ``||G||^2 - V/N`` from the sum of the contributions' squared norms and ``||G||^2``."""
    # Rounding can push the difference below zero when all samples agree.
    variance = max((count * squared_norms - squared_gradient_norm) * count / (count - 1), 0.0)
    return variance, squared_gradient_norm - variance / count


class Window:
    """Numerators and denominators of the last steps, on the host.

    Args:
        length: How many steps are kept.
    """

    def __init__(self, length: int):
        self._rows: deque[tuple[float, float]] = deque(maxlen=length)

    def add(self, noise: float, signal: float) -> None:
        """Add the numerator and the denominator of a step; they do not count if they are not finite or nothing."""
        self._rows.append((noise, signal) if 0 < abs(noise) + abs(signal) < math.inf else (math.nan, math.nan))

    def moments(self) -> list[list[float]]:
        """Return number, sums, and sums of squares and products of the steps that count, shape (3, 3)."""
        sizes = [abs(noise) + abs(signal) for noise, signal in self._rows]
        known = sorted(size for size in sizes if not math.isnan(size))
        # The lower of two medians: of two steps the blown-up one is dropped. NaN is never below anything.
        limit = OUTLIER * known[(len(known) - 1) // 2] if known else 0.0
        rows = [row for row, size in zip(self._rows, sizes, strict=True) if size <= limit]
        noises, signals = ([row[column] for row in rows] for column in range(2))
        aa, ab, bb = (sum(map(mul, *pair)) for pair in ((noises, noises), (noises, signals), (signals, signals)))
        a, b = sum(noises), sum(signals)
        return [[float(len(rows)), a, b], [a, aa, ab], [b, ab, bb]]


def standard_errors_of_95_percent(freedom: float) -> float:
    """Return how many standard errors to either side of a mean hold 95 %, from the number of values less one.

    >>> standard_errors_of_95_percent(2), round(standard_errors_of_95_percent(9), 2), round(standard_errors_of_95_percent(39), 2)
    (4.3, 2.26, 2.02)
    """
    return _FEW.get(round(freedom), 1.96 + 2.37 / freedom + 2.82 / freedom**2)


def noise_scale(moments: Sequence[Sequence[float]]) -> NoiseScale:
    """Return the noise scale from the moments of numerators and denominators of several steps.

    The interval is Fieller's: those ratios R are in it for which ``numerator - R denominator`` is zero within its error. Where
    the denominator itself may be zero there is no upper end.

    Args:
        moments: Number, sums, and sums of squares and products, shape (3, 3).
    """
    number = moments[0][0]
    noise, signal = (total / number for total in moments[0][1:])
    ratio = noise / signal if signal > 0 else math.inf
    if number < 2:
        return NoiseScale(ratio, math.inf, 0.0, math.inf)
    # Variances and covariance of the means
    aa = (moments[1][1] / number - noise * noise) / (number - 1)
    ab = (moments[1][2] / number - noise * signal) / (number - 1)
    bb = (moments[2][2] / number - signal * signal) / (number - 1)
    error = math.sqrt(max(aa - 2 * ratio * ab + ratio * ratio * bb, 0.0)) / signal if signal > 0 else math.inf
    # a R^2 - 2 b R + c = 0 at both ends, solved without loss of digits, and also where it is not quadratic any more
    squared = standard_errors_of_95_percent(number - 1) ** 2
    a, b, c = signal * signal - squared * bb, noise * signal - squared * ab, noise * noise - squared * aa
    root = math.sqrt(max(b * b - a * c, 0.0)) + b
    lower = c / root if c > 0 and root > 0 else 0.0
    upper = root / a if a > 0 and signal > 0 else math.inf
    return NoiseScale(ratio, error, lower, upper)


def power_of_two(value: float) -> float:
    """Return the power of two next to a value, at least 1.

    >>> power_of_two(0.2), power_of_two(9.0), power_of_two(math.inf)
    (1.0, 8.0, inf)
    """
    return 2.0 ** min(round(math.log2(max(value, 1.0))), 1023) if math.isfinite(value) else value


class GradientNoiseScale(Instrument):
    """Writes ``gradient_noise_scale``, ``batch_size``, ``suggested_batch_size`` and its ``_lower`` and ``_upper``, in samples.

    Args:
        window: Over how many of the last measured steps is averaged.
    """

    name = "gradient_noise_scale"
    needs = (GRADIENT, PER_SAMPLE_NORMS)
    readings = (
        "gradient_noise_scale",
        "batch_size",
        "suggested_batch_size",
        "suggested_batch_size_lower",
        "suggested_batch_size_upper",
    )
    preset = "standard"

    def __init__(self, window: int = 40):
        self._window = Window(window)

    def measure(self, step: Step) -> Readings:
        statistics = step.per_sample
        sums = stacked([contributions_squared_norms(statistics).sum(), gradient_squared_norm(step)])
        kind = "conditional" if statistics.conditional else "estimated"
        measurement = _Measurement(self._window, statistics.batch_size)

        def estimate(choose: Callable[[NoiseScale], float | Reading]) -> Reading:
            return Reading(sums, kind=kind, on_host=lambda found: measurement.finish(found, choose))

        return {
            "gradient_noise_scale": estimate(lambda scale: Reading(scale.value, kind=kind, standard_error=scale.standard_error)),
            "batch_size": float(statistics.batch_size),
            "suggested_batch_size": estimate(lambda scale: power_of_two(scale.value)),
            "suggested_batch_size_lower": estimate(lambda scale: scale.lower),
            "suggested_batch_size_upper": estimate(lambda scale: scale.upper),
        }


class _Measurement:
    """One step's, finished on the host, where it goes into the window once for all of its readings."""

    def __init__(self, window: Window, count: int):
        self._window, self._count = window, count
        self._scale: NoiseScale | None = None
        self._added = False

    def finish(self, sums: Sequence[float], choose: Callable[[NoiseScale], float | Reading]) -> float | Reading:
        """Return a reading from the sum of the contributions' squared norms and ``||G||^2``."""
        squared_norms, squared_gradient_norm = sums
        noise, signal = noise_and_signal(squared_norms, squared_gradient_norm, self._count)
        if not self._added:
            self._window.add(noise, signal)
            moments = self._window.moments()
            self._scale = noise_scale(moments) if moments[0][0] else None
            self._added = True
        if not math.isfinite(noise + signal):
            return math.nan  # the average has left it out, but it is to be seen
        if self._scale is None:
            raise NotMeasured("the gradient is zero in every sample")
        return choose(self._scale)
