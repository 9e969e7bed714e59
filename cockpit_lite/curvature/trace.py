r"""Trace of a symmetric matrix from products with it.

Hutchinson's estimator: for a random vector v of signs, ``E[v'Hv] = trace H``, with the variance ``2 (‖H‖_F² - sum_j h_jj²)``.
What is known of the matrix in some subspace with the orthonormal basis V, from a search for eigenvalues, is taken out of
the estimate and added exactly::

    trace H  =  trace V'HV  +  E[z'Hz],   z = v - VV'v

which leaves the outliers of the spectrum, the greater part of ``‖H‖_F``, out of the variance. The basis must not depend on v.

The standard error comes from ``E‖PHz‖² = ‖PHP‖_F²`` (P = 1 - VV') instead of the spread of the few samples: it is there for a
single one. It leaves the diagonal out, so it is never too small on average.

Reference: M. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989); R. Meyer et al., "Hutch++"
(2021) for the deflation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TraceEstimate:
    """A trace and how it was got.

    Attributes:
        value: Scalar tensor.
        standard_error: Scalar tensor, or None where the value is exact.
    """

    value: Tensor
    standard_error: Tensor | None


@dataclass(frozen=True)
class RandomProducts:
    """Random sign vectors and the matrix times each, as rows.

    Attributes:
        signs: The vectors.
        products: The matrix times each.
        variance: What taking a sub-batch of the samples adds to the variance of each ``v'Hv``; None: nothing.
    """

    signs: Tensor
    products: Tensor
    variance: Tensor | None = None


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return a vector of independent signs with the form of ``like``; ``generator`` is on its device."""
    count = like.numel()
    # 64 signs from each random number: drawing one for every sign takes longer than a small network's backward pass.
    numbers = torch.empty(-(-count // 64), dtype=torch.int64, device=like.device).random_(-(2**63), None, generator=generator)
    patterns = torch.arange(256, device=like.device)[:, None] >> torch.arange(8, device=like.device) & 1
    signs = patterns.to(like.dtype).mul_(2).sub_(1)
    return signs.index_select(0, numbers.view(torch.uint8).int()).flatten()[:count].view(like.shape)


@dataclass(frozen=True)
class Remainder:
    """What random products say of a matrix H beside a subspace in which it is known, with the orthonormal basis V.

    Vectors are rows. The basis itself is not among them: it would be kept in memory when there is a larger one already.

    Attributes:
        signs: The random vectors v.
        inside: V'v.
        images: H z, with z = v - VV'v.
        coefficients: V'Hz.
        squares: The squared length of what of H z is outside of the subspace.
        variance: As of :class:`RandomProducts`.
    """

    signs: Tensor
    inside: Tensor
    images: Tensor
    coefficients: Tensor
    squares: Tensor
    variance: Tensor | None


def beside(samples: RandomProducts, basis: Tensor, basis_products: Tensor) -> Remainder:
    """Take what is known of the matrix out of random products with it.

    Args:
        samples: At least one.
        basis: Orthonormal rows, independent of the samples; may be empty.
        basis_products: The matrix times ``basis``.
    """
    # By inner products: vectors of the length of the model, made for a moment, cost more time than what is done with them.
    inside = samples.signs @ basis.T
    images = torch.addmm(samples.products, inside, basis_products, alpha=-1)
    coefficients = images @ basis.T
    squares = torch.linalg.vector_norm(images, dim=1).square() - torch.linalg.vector_norm(coefficients, dim=1).square()
    squares = squares.clamp(min=0)  # rounding, where nothing is outside
    return Remainder(samples.signs, inside, images, coefficients, squares, samples.variance)


def trace_from(rest: Remainder, known: float = 0.0) -> TraceEstimate:
    """Estimate the trace from random products.

    Args:
        rest: What they say beside the subspace in which the matrix is known.
        known: The trace in that subspace, the sum of its Ritz values.
    """
    values = (rest.signs @ rest.images.T).diagonal() - (rest.inside * rest.coefficients).sum(1)
    variance = 2 * rest.squares.mean() / len(values)
    if rest.variance is not None:  # of the same sub-batch for all vectors: their mean is no better in this
        variance = variance + rest.variance.mean()
    return TraceEstimate(known + values.mean(), variance.sqrt())


def exact_trace(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """Return the trace by unit vectors: as many products as ``like`` has elements."""
    diagonal = []
    for index in range(like.numel()):
        unit = torch.zeros_like(like)
        unit[index] = 1
        diagonal.append(product(unit)[index])
    return torch.stack(diagonal).sum()
