r"""Eigenvalues at both ends of a symmetric matrix's spectrum from few products with it, shared by all who ask.

A growing orthonormal basis V with its products W = A V: the eigenvalues of V'W (Ritz values) lie within the spectrum, and
``V s`` approximates an eigenvector of the outermost ones first. The basis grows by the residual ``W s - value V s`` of the
Ritz vector that is wanted; begun with one vector this is the Lanczos method, and everything is orthogonalised twice, so no
eigenvalue shows up as a copy of another. Begun with several it makes use of all that is known beforehand: the eigenvectors
of the last measurement, which along a training change slowly, and the gradient, which lies mostly where the curvature is
large. A start that lies mostly in what the gradient and its product span is not worth a product: what it has beside them joins
the first residual. What one question has spent, the next one finds: the other end of the spectrum, further eigenvalues, a closer
look.

*Largest* is algebraic: a power iteration finds the largest magnitude instead, which for a Hessian may be a negative
eigenvalue. With the residual r some eigenvalue lies within r of the Ritz value, and within r²/gap where ``gap`` separates it
from the rest of the spectrum; the largest Ritz value is a lower bound of the largest eigenvalue (but for rounding).

An eigenvalue that is there several times may be found once, and one that no start has anything of may be overtaken without
being seen: what is found is always an eigenpair within its residual, but only most likely the outermost one.

Memory: two vectors of the matrix's length for each of the basis. As many are kept as fit, at most :data:`MOST_VECTORS` and at
least :data:`FEWEST_VECTORS`; a basis that is full is cut down to its wanted Ritz vectors, whose products are known, and
grows again.

References: B. Parlett, "The Symmetric Eigenvalue Problem" (1998), chapters 11 to 13; E. Davidson (1975); K. Wu and H. Simon,
"Thick-restart Lanczos" (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.curvature.trace import random_signs

Product = Callable[[Tensor], Tensor]

#: The basis holds no more vectors than this, and no fewer than that whatever the memory.
MOST_VECTORS, FEWEST_VECTORS = 12, 4

# So many are allocated at first, and so many more when they are full: most searches end soon.
_FIRST_VECTORS, _MORE_VECTORS = 5, 3

#: Bytes that the basis and its products may take.
MEMORY = 2**31

# Below this share of its length what is left of a vector after orthogonalisation is rounding.
_NEGLIGIBLE = {torch.float32: 1e-5, torch.float64: 1e-12}

# Above this share no second pass of the orthogonalisation is needed (Daniel et al., 1976).
_UNCANCELLED = 0.7

# Below this share what is left of a vector has no product that is worth anything, where that is what is left of a known one.
_CANCELLED = 1e-3

# A start with more than this share of its squared length in what the given products span is not taken by itself; of the rest so
# much goes into the first residual, in its length.
_SPANNED, _REST = 0.75, 0.3

# How much noise goes into the first residual at each end, in its length: a basis in an invariant subspace would never leave it.
_NOISE = 0.1


@dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs, the wanted end of the spectrum first.

    Attributes:
        values: Ritz values. NaN if a product was not finite.
        residuals: ‖A y - value y‖ of each.
        errors: Estimated distance of each from the nearest eigenvalue: the residual, or its square over the gap.
        vectors: Unit vectors y as rows.
        converged: Whether all errors came below the tolerance.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    errors: tuple[float, ...]
    vectors: Tensor
    converged: bool


@dataclass(frozen=True)
class _Ritz:
    """Eigenpairs of the small problem V'W, in rising order, on the host in double precision."""

    values: Tensor
    weights: Tensor


@dataclass(frozen=True)
class _Found:
    """The outermost Ritz pairs at one end, made once for all who ask before the basis grows again.

    Attributes:
        vectors: Ritz vectors y as rows.
        remainders: A y - value y.
        residuals: Their lengths.
    """

    vectors: Tensor
    remainders: Tensor
    residuals: list[float]


class Krylov:
    """A subspace in which a symmetric matrix is known.

    Nothing is computed before the first question. The host looks at the small coefficients, never at vectors; on an
    accelerator, where a look waits for what was launched so far, only after several products, between which the basis grows by
    the last product as in the Lanczos method.

    Args:
        product: Matrix times vector.
        starts: Vectors to begin with, the most trusted first.
        generator: For a little noise, on the device of the vectors.
        known_products: The products of the first starts, as far as they are known.
        memory: Bytes that basis and products may take.
        look_every: After how many products the host looks; by default 1 on a CPU and 3 elsewhere.

    Attributes:
        spent: How many products were spent here.
        capacity: How many vectors the basis can hold.
    """

    def __init__(
        self,
        product: Product,
        starts: Sequence[Tensor],
        generator: torch.Generator,
        *,
        known_products: Sequence[Tensor] = (),
        memory: int = MEMORY,
        look_every: int | None = None,
    ):
        self.spent = 0
        self._product = product
        self._starts = list(starts)
        self._generator = generator
        self._known_products = list(known_products)
        like = starts[0]
        self.dimension = like.numel()
        self.capacity = self._fitting(memory)
        self._like = like
        self._look_every = look_every or (1 if like.device.type == "cpu" else 3)
        self._usable = torch.ones(self.capacity, dtype=torch.bool, device=like.device)
        self._basis: Tensor | None = None
        self._products = like.new_empty(0, 0)
        self._small = like.new_empty(0, 0)  # V'W
        self._count = 0
        self._noisy: set[bool] = set()  # at which ends
        self._rest: Tensor | None = None  # of a start that was not worth a product
        self._exhausted = False
        self._ritz: _Ritz | None = None
        self._found: dict[bool, _Found] = {}  # at which end

    def _fitting(self, memory: int) -> int:
        like = self._starts[0]
        fitting = memory // (2 * like.numel() * like.element_size())
        return min(max(fitting, FEWEST_VECTORS), MOST_VECTORS, like.numel())

    def limit(self, memory: int) -> None:
        """Take no more memory than this from here on, as far as nothing has been allocated yet."""
        if self._basis is None:
            self.capacity = min(self.capacity, self._fitting(memory))

    @property
    def basis(self) -> Tensor:
        """The orthonormal vectors so far, as rows."""
        return self._like.new_empty(0, self.dimension) if self._basis is None else self._basis[: self._count]

    @property
    def basis_products(self) -> Tensor:
        """The matrix times :attr:`basis`, as rows."""
        return self._like.new_empty(0, self.dimension) if self._basis is None else self._products[: self._count]

    @property
    def ritz_values(self) -> tuple[float, ...]:
        """All Ritz values so far, in rising order; only the outermost ones are near eigenvalues."""
        return tuple(self._look().values.tolist()) if self._count else ()

    def top(self, count: int = 1, *, tolerance: float = 1e-2, max_products: int = MOST_VECTORS) -> RitzPairs:
        """Return the algebraically largest eigenvalues, the largest first.

        Args:
            count: How many; fewer are returned where the matrix has fewer rows.
            tolerance: The basis grows until the estimated error of each is below this share of its value.
            max_products: No more products than this are spent in all, whoever asked for them.
        """
        return self._find(count, tolerance, max_products, largest=True)

    def bottom(self, count: int = 1, *, tolerance: float = 1e-2, max_products: int = MOST_VECTORS) -> RitzPairs:
        """Return the algebraically smallest eigenvalues, the smallest first; arguments as of :meth:`top`.

        The error is measured against the largest magnitude of the spectrum: the lower end of a Hessian is often near zero.
        """
        return self._find(count, tolerance, max_products, largest=False)

    def leading(self, count: int) -> Tensor:
        """Return the Ritz vectors of the largest Ritz values as rows, as good as they are by now."""
        weights = self._look().weights[:, -count:].flip(1).to(self._like)
        return weights.T @ self.basis

    def add(self, vector: Tensor) -> None:
        """Take one more vector into the basis, for one product: something that is expected to be near what is asked for next."""
        if self._basis is None:
            self._starts.append(vector)
        elif self._count < self.capacity:
            self._add(vector, None)

    def _find(self, count: int, tolerance: float, max_products: int, *, largest: bool) -> RitzPairs:
        count = min(count, self.capacity)
        self._begin(max(1, max_products))
        while True:
            pairs = self._pairs(count, tolerance, largest)
            if pairs.converged or not math.isfinite(pairs.values[0]) or self.spent >= max_products or self._exhausted:
                return pairs
            worst = max(range(len(pairs.errors)), key=lambda index: pairs.errors[index])
            residual = self._found[largest].remainders[0 if len(pairs.values) < count else worst]
            if self._count == self.capacity:
                self._cut(count + 2, largest)
            known = len(self._look().values)
            self._grow(residual, largest)
            for _ in range(self._look_every - 1):
                if self.spent < max_products and self._count < self.capacity:
                    self._add(self._products[self._count - 1], None)
            if self._look_every > 1:
                self._exhausted = len(self._look().values) == known

    # The basis

    def _begin(self, most: int) -> None:
        if self._basis is not None:
            return
        self._basis = self._like.new_empty(min(self.capacity, _FIRST_VECTORS), self.dimension)
        self._products = torch.empty_like(self._basis)
        self._small = self._like.new_zeros(self.capacity, self.capacity)
        for index, start in enumerate(self._starts):
            known = self._known_products[index] if index < len(self._known_products) else None
            if self._count < self.capacity and (known is not None or (self._count < most and self._is_new(start))):
                self._add(start, known)
        self._starts.clear()
        self._known_products.clear()
        while not self._count and self.spent < most:  # no start was of any use
            self._add(self._random(), None)

    def _is_new(self, start: Tensor) -> bool:
        """Whether a start is worth a product by itself: not where most of it lies in what the given products span.

        The next vector holds that part in any case; the rest is added to it. Where a look holds up the device, every start is.
        """
        if self.spent or not self._count or self._look_every > 1:
            return True
        rows = torch.cat([self.basis, self.basis_products])
        rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        ridge = _CANCELLED**2 * torch.eye(len(rows)).to(rows)
        weights, _ = torch.linalg.solve_ex(rows @ rows.T + ridge, rows @ start)
        rest = start - weights @ rows
        share = torch.linalg.vector_norm(rest) / torch.linalg.vector_norm(start)
        if not bool(share < (1 - _SPANNED) ** 0.5):
            return True
        if bool(share > _CANCELLED):
            self._rest = rest / torch.linalg.vector_norm(rest)
        return False

    def _random(self) -> Tensor:
        return random_signs(self._like, self._generator)

    def _add(self, vector: Tensor, known_product: Tensor | None) -> bool:
        """Take a vector into the basis; False if nothing of it is new."""
        assert self._basis is not None
        position, spanned = self._count, self._basis[: self._count]
        length = torch.linalg.vector_norm(vector)
        fresh, image = vector, known_product
        for _ in range(2):
            inside = spanned @ fresh
            fresh = torch.addmv(fresh, spanned.T, inside, alpha=-1)
            if image is not None and position:
                image = torch.addmv(image, self._products[:position].T, inside, alpha=-1)
            left = torch.linalg.vector_norm(fresh)
            # Where nothing was cancelled, nothing but rounding is left along the basis.
            if self._look_every == 1 and bool(left > _UNCANCELLED * length):
                break
        # Written so that a vector that is not finite counts as nothing new.
        usable = left > (_NEGLIGIBLE.get(vector.dtype, 1e-5) if image is None or not position else _CANCELLED) * length
        if self._look_every == 1 and not bool(usable):
            return False
        if position == len(self._basis):
            del spanned  # a view keeps the basis that is outgrown
            self._basis = self._longer(self._basis)
            self._products = self._longer(self._products)
        if self._look_every == 1:
            torch.div(fresh, left, out=self._basis[position])
        else:  # without asking the host: a row of zeros, which the next look leaves out
            self._usable[position] = usable
            self._basis[position] = torch.where(usable, fresh / left, torch.zeros_like(fresh))
        if image is not None:
            self._products[position] = torch.where(usable, image / left, torch.zeros_like(image))
        else:
            self._products[position] = self._product(self._basis[position])
            self.spent += 1
        self._count += 1
        row = self._basis[: self._count] @ self._products[position]
        self._small[position, : self._count] = row
        self._small[: self._count, position] = row
        self._changed()
        return True

    def _longer(self, rows: Tensor) -> Tensor:
        longer = rows.new_empty(min(self.capacity, len(rows) + _MORE_VECTORS), self.dimension)
        longer[: len(rows)] = rows
        return longer

    def _grow(self, residual: Tensor, largest: bool) -> None:
        if largest not in self._noisy:
            self._noisy.add(largest)
            length, noise = torch.linalg.vector_norm(residual), self._random()
            if largest and self._rest is not None:
                residual, self._rest = torch.addcmul(residual, self._rest, length, value=_REST), None
            residual = torch.addcmul(residual, noise, length, value=_NOISE * self.dimension**-0.5)
        # Noise, too, has nothing new once the basis spans the whole space.
        self._exhausted = not (self._add(residual, None) or (self._count < self.dimension and self._add(self._random(), None)))

    def _cut(self, keep: int, largest: bool) -> None:
        """Keep the Ritz vectors at the wanted end and one at the other; their products are known."""
        assert self._basis is not None
        ritz = self._look()
        keep = min(keep, self.capacity - 2)
        order = list(range(len(ritz.values)))
        chosen = [*order[:1], *order[-keep:]] if largest else [*order[:keep], *order[-1:]]
        weights = ritz.weights[:, chosen].to(self._basis)
        count = len(chosen)
        self._basis[:count] = weights.T @ self._basis[: self._count]
        self._products[:count] = weights.T @ self._products[: self._count]
        self._small.zero_()
        self._small[:count, :count] = self._basis[:count] @ self._products[:count].T
        self._count = count
        self._usable[:] = True
        self._changed()

    # The small problem

    def _changed(self) -> None:
        self._ritz = None
        self._found.clear()

    def _look(self) -> _Ritz:
        if self._ritz is None:
            count = self._count
            seen = torch.cat([self._small[:count, :count], self._usable[None, :count].to(self._small)]).cpu().double()
            small, rows = seen[:count], torch.nonzero(seen[count])[:, 0]
            if not len(rows):  # no start was of any use
                self._add(self._random(), None)
                return self._look()
            if bool(torch.isfinite(small).all()):
                values, vectors = torch.linalg.eigh(small[rows][:, rows])
            else:
                values, vectors = torch.full((len(rows),), math.nan).double(), torch.eye(len(rows)).double()
            weights = torch.zeros(count, len(rows), dtype=torch.float64)
            weights[rows] = vectors
            self._ritz = _Ritz(values, weights)
        return self._ritz

    def _pairs(self, count: int, tolerance: float, largest: bool) -> RitzPairs:
        ritz = self._look()
        known = len(ritz.values)
        positions = list(range(known)[::-1][:count] if largest else range(known)[:count])
        values = ritz.values.tolist()
        size = max(abs(value) for value in values)
        if largest not in self._found or len(self._found[largest].vectors) < len(positions):
            self._found[largest] = self._form(positions)
        seen = self._found[largest]
        residuals = seen.residuals[: len(positions)]
        errors = [_error(values, *pair, inwards=-1 if largest else 1) for pair in zip(positions, residuals, strict=True)]
        scales = [abs(values[position]) if largest else size for position in positions]
        rounding = _NEGLIGIBLE.get(self._like.dtype, 1e-5) * size
        close = all(error <= max(tolerance * scale, rounding) for error, scale in zip(errors, scales, strict=True))
        # A single vector, near the top, has a small residual, too: the bottom is not the same pair again.
        enough = (len(positions) == count and (largest or known > 1)) or self._exhausted
        pairs = tuple(values[position] for position in positions), tuple(residuals), tuple(errors)
        return RitzPairs(*pairs, seen.vectors[: len(positions)], (enough and close) or known == self.dimension)

    def _form(self, positions: Sequence[int]) -> _Found:
        ritz = self._look()
        weights = ritz.weights[:, positions].to(self._like)
        if len(positions) == 1:  # a product of a vector is quicker than one of a matrix with one row
            vectors, images = (weights[:, 0] @ self.basis)[None], (weights[:, 0] @ self.basis_products)[None]
        else:
            vectors, images = weights.T @ self.basis, weights.T @ self.basis_products
        remainders = images.addcmul_(vectors, ritz.values[positions].to(self._like)[:, None], value=-1)
        return _Found(vectors, remainders, torch.linalg.vector_norm(remainders, dim=1).tolist())


def ritz_weights(small: Tensor, inner: Tensor, count: int) -> Tensor:
    """Return the largest Ritz vectors of a symmetric matrix A in the span of any vectors, as weights of these, a row each.

    Args:
        small: X'AX for the vectors X, on the host in double precision.
        inner: X'X, likewise.
        count: How many, at most; none where the numbers are not finite.
    """
    if not bool(torch.isfinite(small).all() & torch.isfinite(inner).all()):
        return small.new_empty(0, len(small))
    lengths, directions = torch.linalg.eigh(inner)
    kept = lengths > _CANCELLED**2 * lengths[-1]  # nearly dependent vectors are one
    white = directions[:, kept] / lengths[kept].sqrt()
    _, found = torch.linalg.eigh(white.T @ ((small + small.T) / 2) @ white)
    return (white @ found[:, -count:].flip(1)).T


def _error(values: Sequence[float], position: int, residual: float, inwards: int) -> float:
    """Estimate how far a Ritz value is from the nearest eigenvalue.

    The gap to the rest of the spectrum is taken for the one to the next Ritz value, but for no more than the value itself:
    much of a network's spectrum lies near zero, where a small basis has not seen it yet.
    """
    neighbour = position + inwards
    gap = abs(values[position] - values[neighbour]) if 0 <= neighbour < len(values) else 0.0
    gap = min(gap, abs(values[position]))
    return min(residual, residual**2 / gap) if gap else residual
