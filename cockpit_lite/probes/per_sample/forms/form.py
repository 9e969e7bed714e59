"""What every form can say about its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cockpit_lite.norms import PIECE

#: Elements that a chunk of materialised per-sample gradients may hold: 2 MB in float32, which caches hold, too.
CHUNK = 500_000


class RankOne(NamedTuple):
    """A direction ``left right'``.

    Attributes:
        left: As long as the parameter's first axis.
        right: As long as all its other axes together.
        factors: For a kernel, what ``right`` is the Kronecker product of: a number a channel, and a number a place.
    """

    left: Tensor
    right: Tensor
    factors: tuple[Tensor, tuple[float, ...]] | None = None


def accurate(tensor: Tensor) -> Tensor:
    """Return the tensor in a precision that sums of squares survive: float32, or float64 if it is that already."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def squares_of(tensor: Tensor) -> Tensor:
    """Return the sums of squares along the last axis, in one pass over the memory."""
    if is_long(tensor):
        return torch.stack([torch.linalg.vector_norm(part, dim=-1).square_() for part in tensor.split(PIECE, -1)]).sum(0)
    return torch.linalg.vector_norm(tensor, dim=-1).square_()


def products_of(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``rows @ columns``, for one row or several."""
    if is_long(rows):
        pairs = zip(rows.split(PIECE, -1), columns.split(PIECE), strict=True)
        return torch.stack([part @ column for part, column in pairs]).sum(0)
    return rows @ columns


def is_long(rows: Tensor) -> bool:
    """Whether a CPU, which adds one after the other, would lose digits: of a sum of two million float32 four are sure."""
    return rows.is_cpu and rows.shape[-1] > PIECE


class Measured(NamedTuple):
    """What one form says about its samples.

    Attributes:
        norms: Squared norms, shape (N,).
        products: Inner products with the directions that were asked for, each of shape (N,).
        along: Inner products with ``left right'``, shape (N,); ``None`` if it was not asked for.
        squares: Sum over the samples of the squared gradients, element by element, shape of the parameter; or ``None``.
    """

    norms: Tensor
    products: tuple[Tensor, ...] = ()
    along: Tensor | None = None
    squares: Tensor | None = None


class Form:
    """Per-sample gradients c_1 ... c_N of one parameter.

    Attributes:
        batch_size: Number of samples N.
        shape: Shape of the parameter.
    """

    batch_size: int
    shape: torch.Size

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """Return squared norms and what else is wanted: cheaper than one after the other.

        Args:
            directions: Of the inner products, each of the parameter's shape.
            along: A direction ``left right'``, which is cheaper than any other.
            squares: Whether the sum of squares is wanted.
        """
        raise NotImplementedError

    def gradients(self) -> Tensor:
        """Return the per-sample gradients themselves, shape (N, *shape). Large: prefer anything else."""
        raise NotImplementedError

    def fold(self, owners: Tensor, batch_size: int) -> Form:
        """Return the form in which row r belongs to sample ``owners[r]``: the gradients of a sample's rows add up."""
        raise NotImplementedError

    def some_products(self, directions: Sequence[Tensor], every: int) -> tuple[Tensor, ...]:
        """Return the inner products of every so manieth sample, beginning with the first, with each of the directions."""
        return tuple(products[::every] for products in self.measure(directions).products)

    def measure_towards(
        self,
        directions: Mapping[str, Tensor],
        along: RankOne | None = None,
        squares: bool = False,
        some: int | None = None,
    ) -> Measured:
        """Measure with named directions; along those that have a name some of the samples may be enough.

        Args:
            directions: Name -> direction; all samples are wanted along that of the name "".
            along: As for :meth:`measure`.
            squares: As for :meth:`measure`.
            some: How many samples are enough, at least; all if left out.
        """
        every = 1 if some is None else max(1, self.batch_size // some)
        if every == 1:
            return self.measure(list(directions.values()), along, squares)
        measured = self.measure([direction for name, direction in directions.items() if not name], along, squares)
        thin = iter(self.some_products([direction for name, direction in directions.items() if name], every))
        whole = iter(measured.products)
        return measured._replace(products=tuple(next(thin if name else whole) for name in directions))

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every sample's gradient, shape (N,)."""
        return self.measure().norms

    def products(self, direction: Tensor) -> Tensor:
        """Return the inner product of every sample's gradient with ``direction``, shape (N,)."""
        return self.measure([direction]).products[0]

    def sum_of_squares(self) -> Tensor:
        """Return the sum over n of c_n squared element by element, shape of the parameter, without building all c_n at once."""
        squares = self.measure(squares=True).squares
        assert squares is not None
        return squares
