"""Tables of which every sample uses a few rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.forms.form import Form, Measured, RankOne, accurate
from cockpit_lite.probes.per_sample.forms.outer_products import OuterProducts


class Rows(Form):
    """Gradients of a table of which every sample uses a few rows.

    Args:
        samples: To which sample an entry belongs, shape (M,).
        rows: Which row of the table it used, shape (M,).
        values: What flows into that row, shape (M, E).
        batch_size: Number of samples.
        shape: Shape (V, E) of the table.
    """

    def __init__(self, samples: Tensor, rows: Tensor, values: Tensor, batch_size: int, shape: torch.Size) -> None:
        self.samples, self.rows, self.values = samples, rows, accurate(values)
        self.batch_size, self.shape = batch_size, shape

    def _per_sample(self, numbers: Tensor, samples: Tensor) -> Tensor:
        return numbers.new_zeros(self.batch_size).index_add_(0, samples, numbers)

    def _added(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return samples, rows and values of the entries, with those of one sample in the same row added up."""
        keys, entry = torch.unique(self.samples * self.shape[0] + self.rows, return_inverse=True)
        sums = self.values.new_zeros(len(keys), self.shape[1]).index_add_(0, entry, self.values)
        return torch.div(keys, self.shape[0], rounding_mode="floor"), keys % self.shape[0], sums

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """Entries of one sample in the same row add up before they are squared."""
        samples, rows, sums = self._added()
        sums.square_()
        total = sums.new_zeros(self.shape).index_add_(0, rows, sums) if squares else None
        return Measured(
            self._per_sample(sums.sum(1), samples),
            tuple(self._looked_up(direction) for direction in directions),
            None if along is None else self.rank_one_products(along.left, along.right),
            total,
        )

    def _looked_up(self, direction: Tensor) -> Tensor:
        """Look the direction up where the samples looked the table up."""
        if direction.is_sparse:
            direction = direction.to_dense()
        return self._per_sample((direction.to(self.values.dtype)[self.rows] * self.values).sum(1), self.samples)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products with ``left right'``: one number an entry."""
        left, right = left.to(self.values.dtype), right.to(self.values.dtype)
        return self._per_sample(left[self.rows] * (self.values @ right), self.samples)

    def gradients(self) -> Tensor:
        """Scatter into N tables."""
        tables = self.values.new_zeros(self.batch_size * self.shape[0], self.shape[1])
        tables.index_add_(0, self.samples * self.shape[0] + self.rows, self.values)
        return tables.reshape(self.batch_size, *self.shape)

    def fold(self, owners: Tensor, batch_size: int) -> Rows:
        """Give the entries of the rows to their owners."""
        return Rows(owners[self.samples], self.rows, self.values, batch_size, self.shape)


class Sum(Form):
    """The sum of a table's rows and of outer products: an embedding that is also the output layer.

    Its cross term needs no gradient either: <c_rows, d_s a_s'> = values . a_s * d_s[row].
    """

    def __init__(self, rows: Rows, outer: OuterProducts) -> None:
        self.table, self.outer = rows, outer
        self.batch_size, self.shape = outer.batch_size, outer.shape

    def _crossing(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield samples and rows of entries of the table, and there table times outer products, element by element."""
        table, inputs, deltas = self.table, self.outer.inputs[:, 0], self.outer.deltas[:, 0]
        entries = max(1, base.CHUNK // max(1, inputs.shape[1] * inputs.shape[2]))
        for samples, rows, values in zip(
            table.samples.split(entries), table.rows.split(entries), table.values.split(entries), strict=True
        ):
            row_of_outer = (deltas[samples, :, rows][:, None] @ inputs[samples])[:, 0]
            yield samples, rows, row_of_outer.mul_(values)

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """Both parts, and what they have in common; inner products add up."""
        table, outer = self.table.measure(directions, along, squares), self.outer.measure(directions, along, squares)
        norms = table.norms + outer.norms
        total = None if table.squares is None or outer.squares is None else table.squares + outer.squares
        for samples, rows, mixed in self._crossing():
            norms.index_add_(0, samples, mixed.sum(1).to(norms.dtype), alpha=2)
            if total is not None:
                total.index_add_(0, rows, mixed.to(total.dtype), alpha=2)
        return Measured(
            norms.clamp_(min=0),
            tuple(one + other for one, other in zip(table.products, outer.products, strict=True)),
            None if table.along is None or outer.along is None else table.along + outer.along,
            None if total is None else total.clamp_(min=0),
        )

    def gradients(self) -> Tensor:
        """Gradients add up."""
        return self.table.gradients() + self.outer.gradients()

    def fold(self, owners: Tensor, batch_size: int) -> Sum:
        """Fold both parts."""
        return Sum(self.table.fold(owners, batch_size), self.outer.fold(owners, batch_size))
