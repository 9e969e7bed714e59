"""Outer products whose factors are large themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms.form import Form, Measured, RankOne
from cockpit_lite.probes.per_sample.forms.outer_products import OuterProducts


class Chunks(Form):
    """Outer products of factors that are made for some samples at a time.

    Args:
        make: Returns the form of some of the samples.
        batch_size: Number of samples.
        samples: How many a chunk may hold.
        shape: Shape of the parameter.
    """

    def __init__(self, make: Callable[[slice], OuterProducts], batch_size: int, samples: int, shape: torch.Size) -> None:
        self.make, self.batch_size, self.samples, self.shape = make, batch_size, max(1, samples), shape

    def whole(self) -> OuterProducts:
        """Return the form of all samples."""
        return self.make(slice(None))

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """Of one chunk after the other."""
        found: list[Measured] = []
        total: Tensor | None = None
        for start in range(0, max(1, self.batch_size), self.samples):
            measured = self.make(slice(start, start + self.samples)).measure(directions, along, squares)
            found.append(measured._replace(squares=None))
            if measured.squares is not None:
                total = measured.squares if total is None else total.add_(measured.squares)
        return Measured(
            torch.cat([measured.norms for measured in found]),
            tuple(torch.cat(parts) for parts in zip(*(measured.products for measured in found), strict=True)),
            torch.cat([measured.along for measured in found if measured.along is not None]) if along is not None else None,
            total,
        )

    def gradients(self) -> Tensor:
        """Of all samples: these are asked for at once."""
        return self.whole().gradients()

    def fold(self, owners: Tensor, batch_size: int) -> OuterProducts:
        """Fold all samples: rows of one may lie in several chunks."""
        return self.whole().fold(owners, batch_size)
