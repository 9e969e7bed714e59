"""Histograms of a run: counts in symmetric logarithmic bins, and what can be said of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cockpit_lite.run import Run


@dataclass(frozen=True)
class Bins:
    """Bins around zero: equally wide in the logarithm from ``10^low`` to ``10^high`` on both sides, one beyond each end.

    >>> Bins(-1, 1, 1).edges
    array([-10. ,  -1. ,  -0.1,   0.1,   1. ,  10. ])
    """

    low: int
    high: int
    per_decade: int

    @property
    def edges(self) -> np.ndarray:
        """The numbers between neighbouring bins."""
        positive = 10.0 ** (self.low + np.arange((self.high - self.low) * self.per_decade + 1) / self.per_decade)
        return np.concatenate([-positive[::-1], positive])

    @property
    def count(self) -> int:
        """Number of bins."""
        return 2 * (self.high - self.low) * self.per_decade + 3

    @property
    def magnitudes(self) -> np.ndarray:
        """Magnitude in the middle of each bin; 0 of the one around zero, infinite of the two at the ends."""
        steps = np.arange((self.high - self.low) * self.per_decade)
        inner = 10.0 ** (self.low + (steps + 0.5) / self.per_decade)
        return np.concatenate([[math.inf], inner[::-1], [0.0], inner, [math.inf]])


@dataclass(frozen=True)
class Histograms:
    """The histograms of one reading.

    Attributes:
        steps: At which they were measured.
        shares: Share of the elements in each bin, shape (steps, bins) or (steps, bins of the one, bins of the other).
        bins: Of each axis.
    """

    steps: np.ndarray
    shares: np.ndarray
    bins: tuple[Bins, ...]

    def last(self, count: int = 5) -> np.ndarray:
        """Return the mean of the last histograms: each is from a few elements only."""
        return np.asarray(self.shares[-count:].mean(axis=0))


def histograms(run: Run, name: str, of: str | None = None) -> Histograms | None:
    """Return the histograms of a reading, or None if there are none.

    Args:
        run: The run.
        name: The reading; its bins are in ``<name>_bins``.
        of: Parameter, for ``<name>/<parameter>``.
    """
    try:
        steps, values = run.series(name if of is None else f"{name}/{of}")
        rows = np.atleast_2d(run.series(f"{name}_bins")[1][-1])
        bins = tuple(Bins(*(int(number) for number in row)) for row in rows)
    except (KeyError, ValueError, TypeError, OverflowError):
        return None
    fits = values.ndim == 1 + len(bins) and values.shape[1:] == tuple(axis.count for axis in bins)
    return Histograms(steps, values / 1e6, bins) if fits and len(steps) else None


def quantile(shares: np.ndarray, bins: Bins, share: float) -> float | None:
    """Return the magnitude below which a share of the elements lies, without the bin around zero; None: there are no others.

    >>> quantile(np.array([0, 0.0, 0.5, 0.5, 0.0]), Bins(0, 1, 1), 0.5)
    3.1622776601683795
    """
    order = np.argsort(bins.magnitudes, kind="stable")[1:]
    total = np.cumsum(shares[order])
    if not total[-1] > 0:
        return None
    return float(bins.magnitudes[order[int(np.searchsorted(total, share * total[-1]))]])
