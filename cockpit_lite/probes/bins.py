"""Symmetric logarithmic bins, fixed once: a histogram of numbers that span decades on both sides of zero.

    bin:    -inf ... -10^high ... -10^low ... 10^low ... 10^high ... inf
            one      (high - low) * per_decade   one   the same     one

Gradients, weights and updates are such numbers: most within a few decades of each other, none of a known size. Bins of equal
width need a range that follows the numbers, so that the histograms of two steps, layers or runs do not compare, and that one
outlier spoils for good: all the rest then falls into the bin at zero. These need no state, no outlier matters to them, and counts
of different batches simply add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SymmetricBins:
    """Bins of equal width in the logarithm, one around zero, and one beyond each end.

    Attributes:
        low: Magnitudes below ``10^low`` are in the bin around zero.
        high: Magnitudes from ``10^high`` on are in the two bins at the ends.
        per_decade: Bins between a magnitude and ten times it.
    """

    low: int
    high: int
    per_decade: int

    @property
    def count(self) -> int:
        """Number of bins."""
        return 2 * ((self.high - self.low) * self.per_decade + 1) + 1

    def describe(self) -> Tensor:
        """Return the three numbers that the edges follow from, as a reading: low, high and bins per decade."""
        return torch.tensor([self.low, self.high, self.per_decade])

    def edges(self) -> Tensor:
        """Return the numbers between neighbouring bins, in order, shape (count - 1,), in float64."""
        steps = torch.arange((self.high - self.low) * self.per_decade + 1, dtype=torch.float64)
        positive = 10 ** (self.low + steps / self.per_decade)
        return torch.cat([-positive.flip(0), positive])

    def index(self, values: Tensor, logarithms: Tensor | None = None) -> Tensor:
        """Return the bin of every value, from 0; ``count`` for NaN. At an edge rounding decides.

        Args:
            values: The numbers.
            logarithms: What :func:`logarithms_of` says of them, if that is known.
        """
        middle = self.count // 2
        # by the logarithm: a search among the edges takes longer
        place = (logarithms_of(values) if logarithms is None else logarithms) * self.per_decade
        place.add_(1 - self.low * self.per_decade).clamp_(0, middle)
        # towards zero is downwards in magnitude
        return place.copysign_(values).nan_to_num_(nan=self.count - middle).long().add_(middle)


def logarithms_of(values: Tensor) -> Tensor:
    """Return the logarithms of the magnitudes, to the base 10."""
    # that of zero, and half of the gradients behind ReLUs are, would take a CPU fifteen times as long as any other
    return values.abs().clamp_(min=torch.finfo(values.dtype).tiny).log10_()


def counted(index: Tensor, count: int) -> Tensor:
    """Return how often each of the numbers 0 to ``count`` - 1 is there, as integers; without waiting for the device."""
    if index.is_cpu:
        return torch.bincount(index.reshape(-1), minlength=count)
    one = torch.ones((), dtype=torch.long, device=index.device)
    return torch.zeros(count, dtype=torch.long, device=index.device).scatter_add_(0, index.reshape(-1), one.expand(index.numel()))
