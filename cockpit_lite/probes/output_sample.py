"""A small sample of a layer's outputs, always at the same places: some units at some samples and positions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: At most so many rows (samples and positions) and columns (units) are kept.
MOST_ROWS, MOST_UNITS = 200, 100


class Sampler:
    """Chooses places at random, with numbers of its own, once for every size: so steps can be compared."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, int, torch.device], Tensor] = {}

    def take(self, values: Tensor, axis: int) -> Tensor:
        """Return some outputs, rows by units, a copy.

        Args:
            values: The outputs, with at least two axes.
            axis: Which of them holds the units.
        """
        units = values.movedim(axis, -1)
        shape = units.shape[:-1]
        count = math.prod(shape)
        if count <= MOST_ROWS:
            rows = units.reshape(count, -1)
        else:
            rows = units[torch.unravel_index(self._chosen(count, MOST_ROWS, values.device), shape)]
        if rows.shape[1] > MOST_UNITS:
            return rows.index_select(1, self._chosen(rows.shape[1], MOST_UNITS, values.device))
        return rows.clone() if count <= MOST_ROWS else rows

    def _chosen(self, count: int, most: int, device: torch.device) -> Tensor:
        """Return ``most`` of ``count`` places, one in each of as many equal parts."""
        key = (count, most, device)
        if key not in self._places:
            generator = torch.Generator().manual_seed(0)
            inside = torch.rand(most, generator=generator, dtype=torch.float64)
            self._places[key] = ((torch.arange(most) + inside) * (count / most)).long().clamp_(max=count - 1).to(device)
        return self._places[key]
