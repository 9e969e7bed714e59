"""Sums of outer products: what any layer with a weight matrix has, and the sums of their left sides, which its bias has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.forms.dense import Dense
from cockpit_lite.probes.per_sample.forms.form import Form, Measured, RankOne, accurate, is_long, products_of, squares_of

#: Up to so many positions a sum of squares is one product over pairs of positions: writing the gradients takes longer.
FEW_POSITIONS = 6
#: Inner products with the sum of the gradients come from those between the samples if these take this much less.
QUICK = 0.8
#: From so many elements on, 128 kB in float32, a gradient is measured by itself on a CPU, while the inner cache holds it.
LARGE = 1 << 15


def sum_is_quick(inputs: Tensor, deltas: Tensor) -> bool:
    """Whether :func:`products_with_sum` takes clearly less than products with the sum as a given direction."""
    fan_in, fan_out = inputs.shape[1], deltas.shape[1]
    return inputs.shape[0] * (fan_in + fan_out) < QUICK * fan_in * fan_out


def products_with_sum(inputs: Tensor, deltas: Tensor) -> Tensor:
    """Return the inner products of the outer products d_n a_n' with their sum, shape (N,), without it.

    Args:
        inputs: a, shape (N, I).
        deltas: d, shape (N, O).
    """
    return (inputs @ inputs.T).mul_(deltas @ deltas.T).sum(1)


class Side:
    """One side of outer products; what several parameters of a layer ask of it is calculated once.

    Args:
        values: Shape (N, G, T, K): samples, groups, positions, features. With one group and one position just (N, K), which
            takes fewer operations: in small layers these weigh more than what they calculate.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = accurate(values)
        self.single = values.dim() == 2
        self.batch_size, self.dtype = values.shape[0], self._values.dtype
        self.uses = 0  # in outer products
        self._norms: Tensor | None = None
        self._gram: Tensor | None = None
        self._sums: Tensor | None = None
        self._along: tuple[Tensor, Tensor] | None = None

    @property
    def values(self) -> Tensor:
        """Shape (N, G, T, K)."""
        return self._values[:, None, None] if self.single else self._values

    def gather(self) -> None:
        """Bring the positions of a sample together in memory, if other samples lie between them: its products like that."""
        if self._values.stride(-1) == 1:  # turned over they lie together
            self._values = self._values.contiguous()

    def double(self) -> Side:
        """Return the same in double precision."""
        return Side(self._values.double())

    def thinned(self, every: int) -> Side:
        """Return the same of every so manieth sample."""
        return Side(self._values[::every])

    def norms(self) -> Tensor:
        """Return the norms, shape (N, G, T) or (N,)."""
        if self._norms is None:
            self._norms = torch.linalg.vector_norm(self._values, dim=-1)
        return self._norms

    def gram(self) -> Tensor:
        """Return the inner products of the positions of a sample, shape (N * G, T, T)."""
        if self._gram is None:
            values = self.values.flatten(0, 1)
            self._gram = torch.bmm(values, values.mT)
        return self._gram

    def sums(self) -> Tensor:
        """Return the sums over the positions, shape (N, G * K)."""
        if self.single:
            return self._values
        if self._sums is None:
            self._sums = self._values.sum(2).flatten(1)
        return self._sums

    def along(self, vector: Tensor) -> Tensor:
        """Return the inner products with ``vector`` (G * K), each group with its own part of it, shape (N, G, T) or (N,)."""
        if self._along is None or self._along[0] is not vector:
            towards = vector.to(self._values.dtype)
            self._along = (vector, self._values @ towards if self.single else self._along_positions(towards))
        return self._along[1]

    def _along_positions(self, towards: Tensor) -> Tensor:
        samples, groups, positions, features = self._values.shape
        if groups > 1:
            return (self._values @ towards.reshape(groups, features, 1))[..., 0]
        if self._values.is_contiguous():
            return (self._values.reshape(samples * positions, features) @ towards).reshape(samples, 1, positions)
        # as recurrent layers have them: time first
        rows = self._values[:, 0].transpose(0, 1).reshape(samples * positions, features)
        return (rows @ towards).reshape(positions, samples).T[:, None]


def _pairs(values: Tensor, weight: float = 1.0) -> Tensor:
    """Return the products of all pairs of positions, those of two different ones times ``weight``, shape (G, N * pairs, K)."""
    samples, groups, positions, features = values.shape
    found = values.new_empty(groups, samples, positions * (positions + 1) // 2, features)
    values, start = values.transpose(0, 1), 0
    for position in range(positions):
        part = found[:, :, start : start + positions - position]
        torch.mul(values[:, :, position:], values[:, :, position, None], out=part)
        if weight != 1.0:
            part[:, :, 1:] *= weight
        start += positions - position
    return found.flatten(1, 2)


class OuterProducts(Form):
    """c_n = sum over t of d_nt a_nt', for each of G groups that share the parameter's first axis.

    Args:
        inputs: a, shape (N, G, T, I).
        deltas: d, shape (N, G, T, O).
        shape: Shape of the parameter, of G * O * I elements in this order.
    """

    def __init__(self, inputs: Tensor | Side, deltas: Tensor | Side, shape: torch.Size) -> None:
        self.left = deltas if isinstance(deltas, Side) else Side(deltas)
        self.right = inputs if isinstance(inputs, Side) else Side(inputs)
        if self.left.dtype != self.right.dtype:  # e.g. a float64 loss on a float32 layer
            self.left, self.right = self.left.double(), self.right.double()
        if self.left.single != self.right.single:
            self.left, self.right = Side(self.left.values), Side(self.right.values)
        self.left.uses += 1
        self.shape = shape
        self.batch_size = self.left.batch_size

    @property
    def positions(self) -> int:
        """T."""
        return 1 if self.right.single else self.right.values.shape[2]

    @property
    def inputs(self) -> Tensor:
        """a, shape (N, G, T, I)."""
        return self.right.values

    @property
    def deltas(self) -> Tensor:
        """d, shape (N, G, T, O)."""
        return self.left.values

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """By the shortest of several ways, all exact.

        One position: norms and squares of an outer product are products of those of its sides. Few positions: c c' summed is
        the inner product of two T x T Gram matrices, and a sum of squares is one over pairs of positions. Many positions: the
        gradients themselves, a chunk of samples at a time, and everything from one pass over them.
        """
        if not self.left.single and self.inputs.shape[2] > 1:
            by_pairs = squares and self.inputs.shape[2] <= FEW_POSITIONS
            if (squares and not by_pairs) or self._gradients_are_small():
                return self._by_gradients(directions, along, squares)
        return Measured(
            (self.left.norms() * self.right.norms()).square_() if self.left.single else self._norms_by_sides(),
            tuple(self._forward(direction) for direction in directions),
            None if along is None else self.rank_one_products(along.left, along.right),
            self._squares_by_sides() if squares else None,
        )

    def _gradients_are_small(self) -> bool:
        """Whether the gradients take less than the Gram matrices; of these, that of the deltas may serve several parameters."""
        positions, fan_in, fan_out = self.inputs.shape[2], self.inputs.shape[3], self.deltas.shape[3]
        return positions * (fan_in + fan_out / self.left.uses) > fan_in * fan_out

    def _norms_by_sides(self) -> Tensor:
        groups, positions = self.inputs.shape[1:3]
        if positions == 0:
            return self.deltas.new_zeros(self.batch_size)
        if positions == 1:
            return (self.right.norms() * self.left.norms()).square_().sum((1, 2))
        samples = max(1, base.CHUNK // (groups * positions**2))
        if samples >= self.batch_size:
            both = (side.gram().view(self.batch_size, -1) for side in (self.right, self.left))
            return torch.linalg.vecdot(*both).clamp_(min=0)
        return torch.cat(
            [
                (a @ a.transpose(-1, -2)).mul_(d @ d.transpose(-1, -2)).sum((1, 2, 3))
                for a, d in zip(self.inputs.split(samples), self.deltas.split(samples), strict=True)
            ]
        ).clamp_(min=0)

    def _squares_by_sides(self) -> Tensor:
        if self.left.single:
            return (self.left.sums().square().T @ self.right.sums().square()).reshape(self.shape)
        if self.inputs.shape[2] == 0:
            return self.deltas.new_zeros(self.shape)
        # the square of a sum over positions is a sum over pairs of them; those of two different ones are there twice
        count = self.inputs.shape[2] * (self.inputs.shape[2] + 1) // 2
        samples = max(1, 4 * base.CHUNK // max(1, count * self.inputs[:1, :, 0].numel()))
        total: Tensor | None = None
        for a, d in zip(self.inputs.split(samples), self.deltas.split(samples), strict=True):
            inputs, deltas = _pairs(a), _pairs(d, 2.0).transpose(1, 2)
            total = torch.bmm(deltas, inputs) if total is None else total.baddbmm_(deltas, inputs)
        assert total is not None  # there is a chunk even of no samples
        return total.clamp_(min=0).reshape(self.shape)

    def _forward(self, direction: Tensor) -> Tensor:
        """Return the inner products of the deltas with what the layer would answer if its weight were ``direction``."""
        if self.left.single:
            rows = self.right.sums() @ direction.to(self.left.dtype).reshape(-1, self.right.sums().shape[1]).T
            return rows.mul_(self.left.sums()).sum(1)
        _, groups, _, fan_in = self.inputs.shape
        matrices = direction.to(self.deltas.dtype).reshape(groups, self.deltas.shape[-1], fan_in)
        if groups == 1:
            answers = (self.inputs[:, 0] @ matrices[0].T)[:, None]
        else:
            answers = torch.einsum("ngti,goi->ngto", self.inputs, matrices)
        return answers.mul_(self.deltas).sum((1, 2, 3))

    def but_norms(self, directions: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor]:
        """Return the inner products with each of the directions, and the sum of squares; of few positions."""
        return [self._forward(direction) for direction in directions], self._squares_by_sides()

    def sum_is_quick(self) -> bool:
        """Whether :meth:`products_with_sum` takes clearly less than products with the sum as a given direction."""
        return self.left.single and sum_is_quick(self.right.sums(), self.left.sums())

    def products_with_sum(self) -> Tensor:
        """Return the inner products with the sum of all gradients, shape (N,), without it; with one position."""
        return products_with_sum(self.right.sums(), self.left.sums())

    def some_products(self, directions: Sequence[Tensor], every: int) -> tuple[Tensor, ...]:
        """What the layer would answer to these samples."""
        some = OuterProducts(self.right.thinned(every), self.left.thinned(every), self.shape)
        return tuple(some._forward(direction) for direction in directions)

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products with ``left right'``, by one number a position on each side."""
        if self.left.single:
            return self.left.along(left) * self.right.along(right)
        groups = self.deltas.shape[1]
        if groups > 1:  # they share what stands right
            right = right.expand(groups, -1).reshape(-1)
        return torch.linalg.vecdot(self.left.along(left).flatten(1), self.right.along(right).flatten(1))

    def _matrices(self) -> Iterator[Tensor]:
        """Yield the gradients in chunks of samples, each of shape (n, G, O, I)."""
        _, groups, _, fan_in = self.inputs.shape
        samples = max(1, base.CHUNK // max(1, groups * fan_in * self.deltas.shape[-1]))
        for inputs, deltas in zip(self.inputs.split(samples), self.deltas.split(samples), strict=True):
            yield deltas.transpose(-1, -2) @ inputs

    def _by_gradients(self, directions: Sequence[Tensor], along: RankOne | None, squares: bool) -> Measured:
        self.left.gather()
        dtype = self.deltas.dtype
        towards = [direction.to(dtype).reshape(-1) for direction in directions]
        if along is not None:
            towards.append(torch.outer(along.left, along.right).to(dtype).reshape(-1))
        total = self.deltas.new_zeros(self.shape.numel()) if squares else None
        one_by_one = self.deltas.is_cpu and self.batch_size > 0 and self.shape.numel() >= LARGE
        norms, products = self._one_by_one(towards, total) if one_by_one else self._some_at_a_time(towards, total)
        return Measured(
            norms,
            tuple(products[: len(directions)]),
            None if along is None else products[-1],
            None if total is None else total.reshape(self.shape),
        )

    def _one_by_one(self, directions: Sequence[Tensor], total: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Return norms and inner products, and add the squares to ``total``."""
        deltas, inputs = self.deltas.transpose(-1, -2), self.inputs
        gradient = deltas.new_empty(deltas.shape[1], deltas.shape[2], inputs.shape[3])
        flat = gradient.view(-1)
        along = products_of if is_long(flat) else torch.dot
        norms: list[Tensor] = []
        products: list[list[Tensor]] = [[] for _ in directions]
        for delta, some in zip(deltas.unbind(), inputs.unbind(), strict=True):
            torch.bmm(delta, some, out=gradient)
            norms.append(along(flat, flat))
            for found, direction in zip(products, directions, strict=True):
                found.append(along(flat, direction))
            if total is not None:
                total.addcmul_(flat, flat)
        return torch.stack(norms), [torch.stack(found) for found in products]

    def _some_at_a_time(self, directions: Sequence[Tensor], total: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Do the same by chunks of samples, in fewer operations."""
        norms: list[Tensor] = []
        products: list[list[Tensor]] = [[] for _ in directions]
        for matrices in self._matrices():
            flat = matrices.flatten(1)
            for found, direction in zip(products, directions, strict=True):
                found.append(products_of(flat, direction))
            if total is None:
                norms.append(squares_of(flat))
            else:
                flat.square_()
                norms.append(flat.sum(1))
                total += flat.sum(0)
        return torch.cat(norms), [torch.cat(found) for found in products]

    def gradients(self) -> Tensor:
        """Sum the outer products."""
        return torch.cat(list(self._matrices())).reshape(self.batch_size, *self.shape)

    def fold(self, owners: Tensor, batch_size: int) -> OuterProducts:
        """The rows of one sample become further positions; zeros fill up where samples have different numbers of rows."""
        counts = torch.bincount(owners, minlength=batch_size)
        order = torch.argsort(owners, stable=True)
        first = counts.cumsum(0) - counts
        slot = torch.arange(len(owners), device=owners.device) - first[owners[order]]
        most = int(counts.max())

        def positions(tensor: Tensor) -> Tensor:
            padded = tensor.new_zeros(batch_size, most, *tensor.shape[1:])
            padded[owners[order], slot] = tensor[order]
            return padded.transpose(1, 2).flatten(2, 3)

        return OuterProducts(positions(self.inputs), positions(self.deltas), self.shape)


class Sums(Dense):
    """c_n = sum over t of d_nt: the bias of a layer whose weight has outer products.

    Args:
        side: The deltas of the weight.
    """

    def __init__(self, side: Side) -> None:
        super().__init__(side.sums())
        self.side = side

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """With one position the norms are those of the deltas; what they are along some direction the weight knows, too."""
        single = self.side.single
        products = tuple(self.values @ direction.to(self.values.dtype).reshape(-1) for direction in directions)
        found = None
        if along is not None:
            found = self.side.along(along[0])
            found = (found if single else found.sum((1, 2))) * along[1]
        norms = self.side.norms().square() if single else squares_of(self.values)
        return Measured(norms, products, found, self._sum_of_squares() if squares else None)
