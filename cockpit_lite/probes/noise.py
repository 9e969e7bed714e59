"""Whole-model noise of the mini-batch gradient, from the per-sample statistics of its parameters.

Notation: sample n contributes c_n to the mini-batch gradient, G = sum c_n; g_n = N c_n is on the scale of G, so that
G = 1/N sum g_n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.probes.last_step import inner_product

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample import PerSampleStatistics
    from cockpit_lite.step import Step


def contributions_squared_norms(statistics: PerSampleStatistics) -> Tensor:
    """Return ``||c_n||^2`` over all parameters, shape (N,).

    Raises:
        NotMeasured: if a parameter is not covered, or the batch holds one sample.
    """
    _require_complete(statistics)
    return total(statistics.squared_norms)


def contributions_products(statistics: PerSampleStatistics) -> Tensor:
    """Return ``c_n' G`` over all parameters, shape (N,).

    Raises:
        NotMeasured: if a parameter is not covered, or the batch holds one sample.
    """
    _require_complete(statistics)
    return total(statistics.products)


def gradient_squared_norm(step: Step) -> Tensor:
    """Return ``||G||^2`` over the parameters that the per-sample statistics cover."""
    covered = {name: value for name, value in step.gradient.items() if name in step.per_sample.squared_norms}
    if not covered:
        raise NotMeasured("no per-sample gradient was seen on this step")
    return inner_product(covered, covered)


def gradient_variance(squared_norms: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return ``V = 1/(N-1) sum ||g_n - G||^2`` from the contributions' squared norms and ``||G||^2``."""
    count = squared_norms.numel()
    # Rounding can push the difference below zero when all samples agree.
    return ((count * squared_norms.sum() - squared_gradient_norm) * (count / (count - 1))).clamp(min=0)


def elements(step: Step) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield name, ``G_j^2`` and ``var_j = 1/N sum g_nj^2 - G_j^2`` of every parameter, one at a time: they are as large as it.

    Raises:
        NotMeasured: if a parameter is not covered, or the batch holds one sample.
    """
    statistics, gradient = step.per_sample, step.gradient
    _require_complete(statistics)
    for name, sum_of_squares in statistics.sum_of_squares.items():
        known = gradient.get(name)
        if known is None:  # the parameter does not take part in the loss
            squared_gradient = torch.zeros_like(sum_of_squares)
        else:
            squared_gradient = (known.to_dense() if known.is_sparse else known).to(sum_of_squares.dtype).square()
        # Rounding can push the difference below zero when all samples agree.
        yield name, squared_gradient, (statistics.batch_size * sum_of_squares).sub_(squared_gradient).clamp_(min=0)


def reading(statistics: PerSampleStatistics, value: Tensor) -> Tensor | Reading:
    """Return ``value``, marked as conditional where batch normalisation couples the samples."""
    if statistics.conditional:
        return Reading(value, kind="conditional", note="conditional on the batch statistics of batch normalisation")
    return value


def _require_complete(statistics: PerSampleStatistics) -> None:
    if statistics.not_covered:
        names = list(statistics.not_covered)
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise NotMeasured(f"the per-sample gradients of {listed} are not covered: {statistics.not_covered[names[0]]}")
    if not statistics.squared_norms:
        raise NotMeasured("no per-sample gradient was seen on this step")
    if statistics.batch_size < 2:
        raise NotMeasured("the batch holds one sample, and its variance needs two")


def total(values: Mapping[str, Tensor]) -> Tensor:
    """Return the sum over the parameters.

    Raises:
        NotMeasured: if there are none.
    """
    found = None
    for value in values.values():
        found = value if found is None else found + value.to(found.device)
    if found is None:
        raise NotMeasured("no per-sample gradient was seen on this step")
    return found
