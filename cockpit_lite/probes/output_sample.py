"""A small sample of a layer's outputs, always at the same places: some units at some samples and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: At most so many rows (samples and positions) and columns (units) are kept.
MOST_ROWS, MOST_UNITS = 128, 32


class Sampler:
    """Chooses places at random, with numbers of its own, once for every shape: so steps can be compared."""

    def __init__(self) -> None:
        self._places: dict[tuple[tuple[int, ...], torch.device], tuple[Tensor, ...]] = {}

    def take(self, values: Tensor, axis: int) -> Tensor:
        """Return some outputs, rows by units, a copy.

        Args:
            values: The outputs, with at least two axes.
            axis: Which of them holds the units.
        """
        units = values.movedim(axis, -1)
        count, width = math.prod(units.shape[:-1]), units.shape[-1]
        key = (tuple(units.shape), units.device)
        if key not in self._places:
            rows, columns = _chosen(count, MOST_ROWS), _chosen(width, MOST_UNITS)
            places = (*(row[:, None] for row in torch.unravel_index(rows, units.shape[:-1])), columns)
            self._places[key] = tuple(place.to(units.device) for place in places)
        places = self._places[key]
        if count <= MOST_ROWS:  # faster than by single places
            return units.reshape(count, width).index_select(1, places[-1])
        return units[places]


def _chosen(count: int, most: int) -> Tensor:
    """Return ``most`` of ``count`` places, one in each of as many equal parts; all of them if there are no more."""
    if count <= most:
        return torch.arange(count)
    inside = torch.rand(most, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.arange(most) + inside) * (count / most)).long().clamp_(max=count - 1)
