"""Trace of a symmetric matrix from products with it.

Hutchinson's estimator: for a random vector v of signs, ``E[v'Hv] = trace H``. The standard error comes from the spread of
the samples. Exact, by unit vectors, where the matrix has no more rows than samples are allowed.

Reference: M. Hutchinson, "A stochastic estimator of the trace of the influence matrix" (1989).
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


def estimate_trace(product: Callable[[Tensor], Tensor], like: Tensor, samples: int, generator: torch.Generator) -> TraceEstimate:
    """Estimate the trace of the matrix behind ``product``.

    Args:
        product: Matrix times vector.
        like: A vector of the right length, device and dtype; only its form counts.
        samples: How many products may be spent, at least 2.
        generator: For the random signs; on the device of ``like``.
    """
    dimension = like.numel()
    if dimension <= samples:
        return TraceEstimate(_exact_trace(product, like), None)
    values = []
    for _ in range(samples):
        signs = torch.randint(0, 2, (dimension,), generator=generator, device=like.device, dtype=like.dtype).mul_(2).sub_(1)
        values.append(signs @ product(signs))
    sampled = torch.stack(values)
    return TraceEstimate(sampled.mean(), sampled.std() / samples**0.5)


def _exact_trace(product: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    diagonal = []
    for index in range(like.numel()):
        unit = torch.zeros_like(like)
        unit[index] = 1
        diagonal.append(product(unit)[index])
    return torch.stack(diagonal).sum()
