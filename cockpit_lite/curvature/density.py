r"""Spectral density of a symmetric matrix: how its eigenvalues are spread, from a few products with it.

Stochastic Lanczos quadrature: for a random vector v of D signs, m steps of the Lanczos method give a tridiagonal matrix whose
eigenvalues are the nodes, and the squared first components of its eigenvectors the weights, of the Gauss quadrature of the
density that v sees: ``v'f(A)v / D`` is exact for every polynomial f up to the degree 2m - 1. The mean over v is
``trace f(A) / D``, so one vector is nearly enough where D is large: its spread falls as 1/sqrt(D).

The basis is orthogonalised twice against all of itself, so no eigenvalue shows up as a copy of another. All coefficients stay
on the device until the end.

References: G. Golub and G. Meurant, "Matrices, Moments and Quadrature" (2010); B. Ghorbani, S. Krishnan and Y. Xiao, "An
investigation into neural net optimization via Hessian eigenvalue density" (ICML 2019); V. Papyan, "The full spectrum of
deepnet Hessians at scale" (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.curvature.trace import Remainder

# Below this share of the matrix's size a coupling is rounding: what comes behind it has no weight.
_NEGLIGIBLE = {torch.float32: 1e-6, torch.float64: 1e-13}


#: So many of the largest eigenvalues that are known beforehand, and the smallest, are nodes of their own.
OUTLIERS = 4


@dataclass(frozen=True)
class Spectrum:
    """Where the eigenvalues are.

    Attributes:
        nodes: Values in rising order, on the host in double precision.
        weights: The share of the eigenvalues that each stands for; they add up to one.
        products: How many products were spent.
    """

    nodes: Tensor
    weights: Tensor
    products: int

    def smoothed(self, grid: Tensor, width: float) -> Tensor:
        """Return the density on ``grid``, every node spread out to a normal distribution of this standard deviation."""
        distances = (grid[:, None].double() - self.nodes) / width
        return (torch.exp(-0.5 * distances**2) * self.weights).sum(1) / (width * (2 * torch.pi) ** 0.5)


def spectral_density(product: Callable[[Tensor], Tensor], starts: Tensor, steps: int, first: Tensor | None = None) -> Spectrum:
    """Return the density, averaged over the starts.

    Args:
        product: Matrix times vector.
        starts: Random sign vectors as rows.
        steps: Products for each, as many as there are nodes.
        first: The product of each start, if they are known.
    """
    steps = min(steps, starts.shape[1])
    small = []
    for index, start in enumerate(starts):
        small.append(tridiagonal(product, start, steps, None if first is None else first[index]))
    matrices = torch.stack(small).cpu().double()
    finite = torch.isfinite(matrices).flatten(1).all(1)
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], matrices, 0.0))
    values = torch.where(finite[:, None], values, torch.nan)
    weights = vectors[:, 0, :].square().flatten() / len(starts)
    order = values.flatten().argsort()
    spent = len(starts) * (steps - (first is not None))
    return Spectrum(values.flatten()[order], weights[order], spent)


def density_beside(
    product: Callable[[Tensor], Tensor], random: Remainder, basis: Tensor, known: Sequence[float], steps: int
) -> Spectrum:
    """Return the density of a matrix that is known in a subspace: what is known counts once each, the quadrature sees the rest.

    The outliers of the spectrum, each of which is one eigenvalue among many, need no nodes then; fewer are enough for the bulk.
    What lies between the two parts, the residuals of the known, is left out: it moves as many eigenvalues as are known at most.

    Args:
        product: Matrix times vector, or an estimate of it.
        random: What one random product says beside the subspace.
        basis: Orthonormal rows V that span it, fewer than the matrix has.
        known: The eigenvalues of V'AV, in rising order, of which the largest and the smallest stay by themselves: the others are
            in the bulk.
        steps: Nodes of the quadrature.
    """
    dimension = basis.shape[1]
    start = torch.addmv(random.signs[0], basis.T, random.inside[0], alpha=-1)
    first = torch.addmv(random.images[0], basis.T, random.coefficients[0], alpha=-1)

    def outside(vector: Tensor) -> Tensor:
        return torch.addmv(vector, basis.T, basis @ vector, alpha=-1)

    steps = min(steps, dimension - len(basis))
    rest = spectral_density(lambda vector: outside(product(vector)), start[None], steps, first[None])
    weights, nodes = rest.weights * (1 - len(basis) / dimension), rest.nodes
    values = torch.tensor(known, dtype=nodes.dtype)
    outer = torch.cat([values[:1], values[1:][-OUTLIERS:]])
    for value in values[1:][:-OUTLIERS]:  # counted to the nearest node of the bulk
        weights[(nodes - value).abs().nan_to_num(0.0).argmin()] += 1 / dimension
    nodes, order = torch.cat([nodes, outer]).sort()
    weights = torch.cat([weights, torch.full_like(outer, 1 / dimension)])[order]
    return Spectrum(nodes, weights, rest.products)


def tridiagonal(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, first: Tensor | None = None) -> Tensor:
    """Return the matrix of the Lanczos method, (steps, steps), on the device.

    Args:
        product: Matrix times vector.
        start: Any vector but zero.
        steps: How many products, at most as many as the matrix has rows.
        first: The product of ``start``, if it is known.
    """
    basis = start.new_empty(steps, start.numel())
    small = start.new_zeros(steps, steps)
    length = torch.linalg.vector_norm(start)
    torch.div(start, length, out=basis[0])
    size = start.new_zeros(())
    for index in range(steps):
        spanned = basis[: index + 1]
        remainder = first / length if first is not None and not index else product(basis[index])
        overlaps = spanned @ remainder
        size = torch.maximum(size, torch.linalg.vector_norm(remainder))
        remainder.addmv_(spanned.T, overlaps, alpha=-1)
        remainder.addmv_(spanned.T, spanned @ remainder, alpha=-1)
        small[index, index] = overlaps[index]
        if index + 1 < steps:
            coupling = torch.linalg.vector_norm(remainder)
            # Zero, without asking the host, where the basis spans an invariant subspace: the rest then has no weight. Written so
            # that NaN stays.
            none = coupling <= _NEGLIGIBLE.get(start.dtype, 1e-6) * size
            coupling = torch.where(none, torch.zeros_like(coupling), coupling)
            torch.div(remainder, torch.where(none, torch.ones_like(coupling), coupling), out=basis[index + 1])
            basis[index + 1] *= ~none
            small[index, index + 1] = small[index + 1, index] = coupling
    return small
