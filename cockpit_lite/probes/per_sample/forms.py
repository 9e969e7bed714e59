"""The forms in which a rule hands over the per-sample gradients of one parameter.

A rule never has to build the N gradients: it says how they factor, and the form knows the cheapest way to squared norms,
inner products, sums of squares and, where somebody really needs them, the gradients themselves.

    OuterProducts    sum over positions t of  d_t a_t'      Linear, convolutions, recurrent weights
    Chunks           the same, some samples at a time        convolutions with large patches
    Rows             rows of a table                         Embedding, EmbeddingBag
    Dense            the gradients, one after the other      biases, normalisation layers, anything else

All forms calculate in float32 at least, also in a half precision training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: Elements that a chunk of materialised per-sample gradients may hold: 4 MB in float32, which caches hold, too.
CHUNK = 1_000_000


def accurate(tensor: Tensor) -> Tensor:
    """Return the tensor in a precision that sums of squares survive: float32, or float64 if it is that already."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.to(torch.float32)


def _squares(tensor: Tensor) -> Tensor:
    """Return the sums of squares along the last axis, in one pass over the memory."""
    return torch.linalg.vector_norm(tensor, dim=-1).square_()


class Measured(NamedTuple):
    """What one form says about its samples.

    Attributes:
        norms: Squared norms, shape (N,).
        products: Inner products with the direction, shape (N,); ``None`` if none was asked for.
        squares: Sum over the samples of the squared gradients, element by element, shape of the parameter; or ``None``.
    """

    norms: Tensor
    products: Tensor | None = None
    squares: Tensor | None = None


class Form:
    """Per-sample gradients c_1 ... c_N of one parameter.

    Attributes:
        batch_size: Number of samples N.
        shape: Shape of the parameter.
    """

    batch_size: int
    shape: torch.Size

    @property
    def products_come_free(self) -> bool:
        """Whether inner products cost next to nothing once the norms are measured."""
        return True

    def squared_norms(self) -> Tensor:
        """Return the squared norm of every sample's gradient, shape (N,)."""
        raise NotImplementedError

    def products(self, direction: Tensor) -> Tensor:
        """Return the inner product of every sample's gradient with ``direction``, shape (N,)."""
        raise NotImplementedError

    def sum_of_squares(self) -> Tensor:
        """Return the sum over n of c_n squared element by element, shape of the parameter, without building all c_n at once."""
        raise NotImplementedError

    def measure(self, direction: Tensor | None, squares: bool = False) -> Measured:
        """Return squared norms and what else is wanted: cheaper than one after the other.

        Args:
            direction: Of the inner products; ``None``: none are wanted.
            squares: Whether the sum of squares is wanted.
        """
        return Measured(
            self.squared_norms(),
            None if direction is None else self.products(direction),
            self.sum_of_squares() if squares else None,
        )

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """Measure with inner products with ``left right'``: cheaper than with any other direction.

        Args:
            left: As long as the parameter's first axis.
            right: As long as all other axes together.
            squares: Whether the sum of squares is wanted.
        """
        return self.measure(torch.outer(left, right).reshape(self.shape), squares)

    def gradients(self) -> Tensor:
        """Return the per-sample gradients themselves, shape (N, *shape). Large: prefer anything else."""
        raise NotImplementedError

    def fold(self, owners: Tensor, batch_size: int) -> Form:
        """Return the form in which row r belongs to sample ``owners[r]``: the gradients of a sample's rows add up."""
        raise NotImplementedError


class Dense(Form):
    """The per-sample gradients as they are, shape (N, *shape)."""

    def __init__(self, values: Tensor) -> None:
        self.values = accurate(values)
        self.batch_size = values.shape[0]
        self.shape = values.shape[1:]

    def squared_norms(self) -> Tensor:
        """Sum of squares."""
        return _squares(self.values.reshape(self.batch_size, -1))

    def products(self, direction: Tensor) -> Tensor:
        """One matrix-vector product."""
        return self.values.reshape(self.batch_size, -1) @ direction.to(self.values.dtype).reshape(-1)

    def sum_of_squares(self) -> Tensor:
        """Square a chunk of samples at a time."""
        samples = max(1, CHUNK // max(1, self.shape.numel()))
        total = self.values.new_zeros(self.shape)
        for values in self.values.split(samples):
            total += values.square().sum(0)
        return total

    def gradients(self) -> Tensor:
        """They are there already."""
        return self.values

    def fold(self, owners: Tensor, batch_size: int) -> Dense:
        """Add the rows of one sample."""
        return Dense(self.values.new_zeros(batch_size, *self.shape).index_add_(0, owners, self.values))


class Side:
    """One side of outer products; what several parameters of a layer ask of it is calculated once.

    Args:
        values: Shape (N, G, T, K): samples, groups, positions, features.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = accurate(values)
        self.uses = 0  # in outer products
        self._squares: Tensor | None = None
        self._gram: Tensor | None = None
        self._sums: Tensor | None = None
        self._along: tuple[Tensor, Tensor] | None = None

    def squares(self) -> Tensor:
        """Return the squared norms, shape (N, G, T)."""
        if self._squares is None:
            self._squares = _squares(self.values)
        return self._squares

    def gram(self) -> Tensor:
        """Return the inner products of the positions of a sample, shape (N, G, T, T)."""
        if self._gram is None:
            self._gram = self.values @ self.values.transpose(-1, -2)
        return self._gram

    def sums(self) -> Tensor:
        """Return the sums over the positions, shape (N, G * K)."""
        if self._sums is None:
            values = self.values
            self._sums = (values[:, :, 0] if values.shape[2] == 1 else values.sum(2)).flatten(1)
        return self._sums

    def along(self, vector: Tensor) -> Tensor:
        """Return the inner products with ``vector`` (G * K), each group with its own part of it, shape (N, G, T)."""
        if self._along is None or self._along[0] is not vector:
            samples, groups, positions, features = self.values.shape
            towards = vector.to(self.values.dtype)
            if groups > 1:
                found = (self.values @ towards.reshape(groups, features, 1))[..., 0]
            elif self.values.is_contiguous():
                found = (self.values.reshape(-1, features) @ towards).reshape(samples, 1, positions)
            else:  # as recurrent layers have them: time first
                found = (self.values[:, 0].transpose(0, 1).reshape(-1, features) @ towards).reshape(positions, samples).T[:, None]
            self._along = (vector, found)
        return self._along[1]


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
        if self.left.values.dtype != self.right.values.dtype:  # e.g. a float64 loss on a float32 layer
            self.left, self.right = Side(self.left.values.double()), Side(self.right.values.double())
        self.inputs, self.deltas, self.shape = self.right.values, self.left.values, shape
        self.left.uses += 1
        self.batch_size = self.deltas.shape[0]

    def _matrices(self) -> Iterator[Tensor]:
        """Yield the gradients in chunks of samples, each of shape (n, G, O, I)."""
        _, groups, _, fan_in = self.inputs.shape
        samples = max(1, CHUNK // max(1, groups * fan_in * self.deltas.shape[-1]))
        for inputs, deltas in zip(self.inputs.split(samples), self.deltas.split(samples), strict=True):
            yield deltas.transpose(-1, -2) @ inputs

    def squared_norms(self) -> Tensor:
        """By the shortest of three ways, all exact.

        One position: the norm of an outer product is the product of the norms. Few positions: c c' summed is the inner product
        of two T x T Gram matrices. Many positions: the gradients themselves, a chunk of samples at a time.
        """
        positions = self.inputs.shape[2]
        if positions == 0:
            return self.deltas.new_zeros(self.batch_size)
        if positions == 1:
            squares = self.right.squares() * self.left.squares()
            return squares[:, 0, 0] if squares.shape[1] == 1 else squares.sum((1, 2))
        if self.products_come_free:
            return torch.cat([_squares(matrices.flatten(1)) for matrices in self._matrices()])
        samples = max(1, CHUNK // (self.inputs.shape[1] * positions**2))
        if samples >= self.batch_size:
            return (self.right.gram() * self.left.gram()).sum((1, 2, 3)).clamp_(min=0)
        return torch.cat(
            [
                (a @ a.transpose(-1, -2)).mul_(d @ d.transpose(-1, -2)).sum((1, 2, 3))
                for a, d in zip(self.inputs.split(samples), self.deltas.split(samples), strict=True)
            ]
        ).clamp_(min=0)

    @property
    def products_come_free(self) -> bool:
        """Whether the gradients are built anyway, because they are smaller than the Gram matrices."""
        positions, fan_in, fan_out = self.inputs.shape[2], self.inputs.shape[3], self.deltas.shape[3]
        return positions > 1 and positions * (fan_in + fan_out / self.left.uses) >= fan_in * fan_out

    def measure(self, direction: Tensor | None, squares: bool = False) -> Measured:
        """Where the gradients are built for one of the three, the other two come out of the same pass."""
        several = self.inputs.shape[2] > 1
        if not (several and squares) and (direction is None or not self.products_come_free):
            return super().measure(direction, squares)
        towards = None if direction is None else direction.to(self.deltas.dtype).reshape(-1)
        norms, products = [], []
        total = self.deltas.new_zeros(self.shape.numel()) if squares else None
        for matrices in self._matrices():
            flat = matrices.flatten(1)
            if towards is not None:
                products.append(flat @ towards)
            if total is None:
                norms.append(_squares(flat))
            else:
                flat.square_()
                norms.append(flat.sum(1))
                total += flat.sum(0)
        return Measured(
            torch.cat(norms), torch.cat(products) if products else None, None if total is None else total.reshape(self.shape)
        )

    def sum_of_squares(self) -> Tensor:
        """One position: the square of an outer product is the outer product of the squares. Else the gradients, by chunks."""
        if self.inputs.shape[2] == 1:
            inputs, deltas = self.inputs[:, :, 0].square().transpose(0, 1), self.deltas[:, :, 0].square().transpose(0, 1)
            return (deltas.transpose(1, 2) @ inputs).reshape(self.shape)
        total = self.deltas.new_zeros(self.shape.numel())
        for matrices in self._matrices():
            total += matrices.flatten(1).square_().sum(0)
        return total.reshape(self.shape)

    def products(self, direction: Tensor) -> Tensor:
        """The inner product of the deltas with what the layer would answer if its weight were ``direction``."""
        _, groups, _, fan_in = self.inputs.shape
        matrices = direction.to(self.deltas.dtype).reshape(groups, self.deltas.shape[-1], fan_in)
        if groups == 1:
            answers = (self.inputs[:, 0] @ matrices[0].T)[:, None]
        else:
            answers = torch.einsum("ngti,goi->ngto", self.inputs, matrices)
        return answers.mul_(self.deltas).sum((1, 2, 3))

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """Where the gradients are not built, by one number a position on each side."""
        if self.products_come_free or (squares and self.inputs.shape[2] > 1):
            return super().measure_along(left, right, squares)
        return self.measure(None, squares)._replace(products=self.rank_one_products(left, right))

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products with ``left right'``."""
        if self.deltas.shape[1] > 1:  # the groups share what stands right
            right = right.expand(self.deltas.shape[1], -1).reshape(-1)
        along = self.left.along(left) * self.right.along(right)
        return along[:, 0, 0] if along.shape[1:] == (1, 1) else along.sum((1, 2))

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

    def squared_norms(self) -> Tensor:
        """With one position they are those of the deltas."""
        if self.side.values.shape[1:3] == (1, 1):
            return self.side.squares()[:, 0, 0]
        return super().squared_norms()

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """The products of the deltas with ``left`` are known from the weight."""
        along = self.side.along(left)
        along = along[:, 0, 0] if along.shape[1:] == (1, 1) else along.sum((1, 2))
        return self.measure(None, squares)._replace(products=along * right)


class Chunks(Form):
    """Outer products of factors that are large themselves, and made for some samples at a time.

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

    def _slices(self) -> list[slice]:
        return [slice(start, start + self.samples) for start in range(0, max(1, self.batch_size), self.samples)]

    def _gathered(self, measure: Callable[[OuterProducts], Measured]) -> Measured:
        norms, products, total = [], [], None
        for form in map(self.make, self._slices()):
            measured = measure(form)
            norms.append(measured.norms)
            if measured.products is not None:
                products.append(measured.products)
            if measured.squares is not None:
                total = measured.squares if total is None else total.add_(measured.squares)
        return Measured(torch.cat(norms), torch.cat(products) if products else None, total)

    def squared_norms(self) -> Tensor:
        """Of one chunk after the other."""
        return self.measure(None).norms

    def products(self, direction: Tensor) -> Tensor:
        """Of one chunk after the other."""
        return torch.cat([form.products(direction) for form in map(self.make, self._slices())])

    def sum_of_squares(self) -> Tensor:
        """Of one chunk after the other."""
        squares = self.measure(None, squares=True).squares
        assert squares is not None
        return squares

    def measure(self, direction: Tensor | None, squares: bool = False) -> Measured:
        """Of one chunk after the other."""
        return self._gathered(lambda form: form.measure(direction, squares))

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """Of one chunk after the other."""
        return self._gathered(lambda form: form.measure_along(left, right, squares))

    def gradients(self) -> Tensor:
        """Of all samples: these are asked for at once."""
        return self.whole().gradients()

    def fold(self, owners: Tensor, batch_size: int) -> OuterProducts:
        """Fold all samples: rows of one may lie in several chunks."""
        return self.whole().fold(owners, batch_size)


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

    def squared_norms(self) -> Tensor:
        """Entries of one sample in the same row add up before they are squared."""
        return self.measure(None).norms

    def sum_of_squares(self) -> Tensor:
        """Scatter the squares into one table."""
        squares = self.measure(None, squares=True).squares
        assert squares is not None
        return squares

    def measure(self, direction: Tensor | None, squares: bool = False) -> Measured:
        """Add the entries up once."""
        samples, rows, sums = self._added()
        sums.square_()
        total = sums.new_zeros(self.shape).index_add_(0, rows, sums) if squares else None
        norms = self._per_sample(sums.sum(1), samples)
        return Measured(norms, None if direction is None else self.products(direction), total)

    def products(self, direction: Tensor) -> Tensor:
        """Look the direction up where the samples looked the table up."""
        if direction.is_sparse:
            direction = direction.to_dense()
        return self._per_sample((direction.to(self.values.dtype)[self.rows] * self.values).sum(1), self.samples)

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """One number an entry."""
        return self.measure(None, squares)._replace(products=self.rank_one_products(left, right))

    def rank_one_products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products with ``left right'``."""
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

    @property
    def products_come_free(self) -> bool:
        """As for the outer products."""
        return self.outer.products_come_free

    def _crossing(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield samples and rows of entries of the table, and there table times outer products, element by element."""
        table, inputs, deltas = self.table, self.outer.inputs[:, 0], self.outer.deltas[:, 0]
        entries = max(1, CHUNK // max(1, inputs.shape[1] * inputs.shape[2]))
        for samples, rows, values in zip(
            table.samples.split(entries), table.rows.split(entries), table.values.split(entries), strict=True
        ):
            row_of_outer = (deltas[samples, :, rows][:, None] @ inputs[samples])[:, 0]
            yield samples, rows, row_of_outer.mul_(values)

    def squared_norms(self) -> Tensor:
        """Squared norms of both parts and twice their inner product."""
        return self.measure(None).norms

    def sum_of_squares(self) -> Tensor:
        """Squares of both parts and twice their product."""
        squares = self.measure(None, squares=True).squares
        assert squares is not None
        return squares

    def measure(self, direction: Tensor | None, squares: bool = False) -> Measured:
        """Both parts, and what they have in common."""
        table, outer = self.table.measure(direction, squares), self.outer.measure(direction, squares)
        norms = table.norms + outer.norms
        total = None if table.squares is None or outer.squares is None else table.squares + outer.squares
        for samples, rows, mixed in self._crossing():
            norms.index_add_(0, samples, mixed.sum(1).to(norms.dtype), alpha=2)
            if total is not None:
                total.index_add_(0, rows, mixed.to(total.dtype), alpha=2)
        products = None if table.products is None or outer.products is None else table.products + outer.products
        return Measured(norms.clamp_(min=0), products, None if total is None else total.clamp_(min=0))

    def products(self, direction: Tensor) -> Tensor:
        """Inner products add up."""
        return self.table.products(direction) + self.outer.products(direction)

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """Inner products add up."""
        along = self.table.rank_one_products(left, right) + self.outer.rank_one_products(left, right)
        return self.measure(None, squares)._replace(products=along)

    def gradients(self) -> Tensor:
        """Gradients add up."""
        return self.table.gradients() + self.outer.gradients()

    def fold(self, owners: Tensor, batch_size: int) -> Sum:
        """Fold both parts."""
        return Sum(self.table.fold(owners, batch_size), self.outer.fold(owners, batch_size))


class Condensed(Form):
    """What is left of a form of which no inner products are wanted, but the one by which it is checked.

    Args:
        form: The form, which may be forgotten.
        left: See :meth:`Form.measure_along`.
        right: See there.
        squares: Whether the sum of squares is wanted.
    """

    def __init__(self, form: Form, left: Tensor, right: Tensor, squares: bool) -> None:
        self.batch_size, self.shape = form.batch_size, form.shape
        self.measured = form.measure_along(left, right, squares)

    def squared_norms(self) -> Tensor:
        """As measured."""
        return self.measured.norms

    def measure(self, direction: Tensor | None, squares: bool = False) -> Measured:
        """Return what was measured; inner products with anything else are gone."""
        if direction is not None or (squares and self.measured.squares is None):
            raise ValueError("this was not kept")
        return self.measured._replace(products=None)

    def measure_along(self, left: Tensor, right: Tensor, squares: bool = False) -> Measured:
        """Return what was measured along the same direction."""
        return self.measure(None, squares)._replace(products=self.measured.products)


def add(forms: Sequence[Form]) -> Form:
    """Return the form of the sum: the same samples passed through the same parameter several times.

    Cross terms are kept: further uses are further positions of one form, not further norms.
    """
    if len(forms) == 1:
        return forms[0]
    forms = [form.whole() if isinstance(form, Chunks) else form for form in forms]
    shape, batch_size = forms[0].shape, forms[0].batch_size
    outers = [form for form in forms if isinstance(form, OuterProducts)]
    tables = [form for form in forms if isinstance(form, Rows)]
    same_groups = len({form.inputs.shape[1] for form in outers}) == 1
    if len(outers) + len(tables) == len(forms) and (same_groups or not outers):
        outer = (
            OuterProducts(torch.cat([form.inputs for form in outers], 2), torch.cat([form.deltas for form in outers], 2), shape)
            if outers
            else None
        )
        table = (
            Rows(
                torch.cat([form.samples for form in tables]),
                torch.cat([form.rows for form in tables]),
                torch.cat([form.values for form in tables]),
                batch_size,
                shape,
            )
            if tables
            else None
        )
        if outer is None or table is None:
            return outer or table  # type: ignore[return-value]  # one of them is there
        if outer.inputs.shape[1] == 1 and len(shape) == 2:
            return Sum(table, outer)
    total = forms[0].gradients().clone()
    for form in forms[1:]:
        total += form.gradients()
    return Dense(total)
