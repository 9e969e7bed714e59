"""Per-sample gradients that are small enough to be there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.forms.form import Form, Measured, RankOne, accurate, products_of, squares_of


class Dense(Form):
    """The per-sample gradients as they are, shape (N, *shape)."""

    def __init__(self, values: Tensor) -> None:
        self.values = accurate(values)
        self.batch_size = values.shape[0]
        self.shape = values.shape[1:]

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """One matrix-vector product a direction."""
        rows = self.values.reshape(self.batch_size, -1)
        products = tuple(products_of(rows, direction.to(rows.dtype).reshape(-1)) for direction in directions)
        return Measured(
            squares_of(rows),
            products,
            None if along is None else products_of(rows, torch.outer(along.left, along.right).to(rows.dtype).reshape(-1)),
            self._sum_of_squares() if squares else None,
        )

    def some_products(self, directions: Sequence[Tensor], every: int) -> tuple[Tensor, ...]:
        """They are rows of a matrix."""
        rows = self.values.reshape(self.batch_size, -1)[::every]
        return tuple(products_of(rows, direction.to(rows.dtype).reshape(-1)) for direction in directions)

    def _sum_of_squares(self) -> Tensor:
        """Square a chunk of samples at a time."""
        samples = max(1, base.CHUNK // max(1, self.shape.numel()))
        if samples >= self.batch_size:
            return self.values.square().sum(0)
        total = self.values.new_zeros(self.shape)
        for values in self.values.split(samples):
            total += values.square().sum(0)
        return total

    def gradients(self) -> Tensor:
        """They are there already."""
        return self.values

    def alone(self) -> Dense:
        """Return the same in memory of its own, if it is a part of something larger."""
        return self if self.values.untyped_storage().nbytes() <= 2 * self.values.nbytes else Dense(self.values.clone())

    def fold(self, owners: Tensor, batch_size: int) -> Dense:
        """Add the rows of one sample."""
        return Dense(self.values.new_zeros(batch_size, *self.shape).index_add_(0, owners, self.values))
