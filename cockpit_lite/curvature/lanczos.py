r"""The largest eigenvalue of a symmetric matrix from few products with it.

Lanczos with a basis that is allocated once and orthogonalised twice against all of itself, so that no eigenvalue shows up
as a copy of another. *Largest* is algebraic: a power iteration finds the largest magnitude instead, which for a Hessian may
be a negative eigenvalue. Along a training run the matrix changes slowly, and the last eigenvector is a start that saves
half of the products.

A Ritz value is never above the true largest eigenvalue (but for rounding). With the residual r = ‖A y - value y‖ some
eigenvalue lies within r of it, and within r²/gap where ``gap`` separates it from the rest of the spectrum.

Reference: B. Parlett, "The Symmetric Eigenvalue Problem" (1998), chapters 11 to 13.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

# Below this share of the matrix's size a coupling is rounding: the basis spans an invariant subspace.
_NEGLIGIBLE = {torch.float32: 1e-6, torch.float64: 1e-13}


@dataclass(frozen=True)
class TopEigenpair:
    """What Lanczos found.

    Attributes:
        value: Largest Ritz value. NaN if a product was not finite.
        residual: ‖A y - value y‖ for the unit vector y.
        vector: The unit vector y; a start for the next time.
        products: How many products were spent.
        converged: Whether the residual came below the tolerance.
    """

    value: float
    residual: float
    vector: Tensor
    products: int
    converged: bool


@dataclass(frozen=True)
class _Ritz:
    value: float
    residual: float
    weights: Tensor
    exhausted: bool


def top_eigenpair(
    product: Product,
    start: Tensor,
    *,
    tolerance: float = 1e-2,
    max_products: int = 12,
    max_vectors: int = 12,
    check_every: int | None = None,
) -> TopEigenpair:
    """Find the algebraically largest eigenvalue and its eigenvector.

    The coefficients stay on the device. The test for the end has to look at them from the host, which on an accelerator
    waits for the products launched so far; so there it looks at every second product only.

    Args:
        product: Matrix times vector, for a symmetric matrix.
        start: Any vector that is not zero; the nearer to the eigenvector the better. It should hold a little of everything:
            Lanczos never leaves an invariant subspace that it starts in.
        tolerance: Stop when the residual is below this share of the eigenvalue. The error of the value is then far smaller.
        max_products: Stop here in any case.
        max_vectors: How many vectors of the length of ``start`` the basis may hold, at least 2. With fewer vectors than
            products Lanczos is restarted from its best vector.
        check_every: After how many products to test for the end; default 1 on a CPU and 2 elsewhere.
    """
    if check_every is None:
        check_every = 1 if start.device.type == "cpu" else 2
    size = max(1, min(max_products, max_vectors, start.numel()))
    basis = start.new_empty(size, start.numel())
    spent = 0
    vector = start
    while True:
        pair = _sweep(product, vector, basis[: max_products - spent], tolerance, check_every)
        spent += pair.products
        # A single product tells nothing new about a Ritz vector.
        if pair.converged or not math.isfinite(pair.value) or max_products - spent < 2 or pair.products < size:
            return TopEigenpair(pair.value, pair.residual, pair.vector, spent, pair.converged)
        vector = pair.vector


def _sweep(product: Product, start: Tensor, basis: Tensor, tolerance: float, check_every: int) -> TopEigenpair:
    """Fill ``basis`` until it is full or holds the eigenvector well enough."""
    size = len(basis)
    diagonal, couplings = basis.new_zeros(size), basis.new_zeros(size)
    torch.div(start, torch.linalg.vector_norm(start), out=basis[0])
    for index in range(size):
        spanned = basis[: index + 1]
        remainder = product(basis[index])
        # Twice is enough: the first pass leaves rounding along the basis, the second removes it.
        overlaps = spanned @ remainder
        remainder = torch.addmv(remainder, spanned.T, overlaps, alpha=-1)
        corrections = spanned @ remainder
        remainder = torch.addmv(remainder, spanned.T, corrections, alpha=-1)
        diagonal[index] = overlaps[index] + corrections[index]
        couplings[index] = torch.linalg.vector_norm(remainder)
        count = index + 1
        if count == size or count % check_every == 0:
            ritz = _largest_ritz_pair(torch.stack([diagonal[:count], couplings[:count]]))
            converged = ritz.residual <= tolerance * abs(ritz.value) or ritz.exhausted
            if converged or not math.isfinite(ritz.value):
                break
        if count < size:
            torch.div(remainder, couplings[index].clamp_min(torch.finfo(basis.dtype).tiny), out=basis[count])
    weights = ritz.weights.to(basis)
    return TopEigenpair(ritz.value, ritz.residual, basis[: len(weights)].T @ weights, count, converged)


def _largest_ritz_pair(coefficients: Tensor) -> _Ritz:
    """Solve the small tridiagonal problem on the host, in double precision."""
    negligible = _NEGLIGIBLE.get(coefficients.dtype, 1e-6)
    diagonal, couplings = coefficients.cpu().double()
    if not bool(torch.isfinite(coefficients).all()):
        return _Ritz(math.nan, math.nan, torch.ones(1, dtype=torch.float64), False)
    size = float(torch.maximum(diagonal.abs(), couplings).max())
    ends = torch.nonzero(couplings <= negligible * size)
    exhausted = len(ends) > 0
    count = int(ends[0]) + 1 if exhausted else len(diagonal)
    inner = couplings[: count - 1]
    matrix = torch.diag(diagonal[:count]) + torch.diag(inner, 1) + torch.diag(inner, -1)
    values, vectors = torch.linalg.eigh(matrix)
    weights = vectors[:, -1]
    value = float(values[-1])
    residual = float(couplings[count - 1] * weights[-1].abs())
    return _Ritz(value, residual, weights, exhausted)
