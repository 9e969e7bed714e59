"""Whole-model noise of the mini-batch gradient, from the per-sample statistics of its parameters.

Notation: sample n contributes c_n to the mini-batch gradient, G = sum c_n; g_n = N c_n is on the scale of G, so that
G = 1/N sum g_n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.norms import in_pieces, total_norm

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample import PerSampleStatistics
    from cockpit_lite.step import Step

#: Added to the variance of an element, which keeps one without variance from counting as infinite.
DAMPING = 1e-5


def contributions_squared_norms(statistics: PerSampleStatistics) -> Tensor:
    """Return ``||c_n||^2`` over all parameters, shape (N,).

    Raises:
        NotMeasured: if a parameter is not covered, or the batch holds one sample.
    """
    _require_complete(statistics)
    return statistics.total_squared_norms


def contributions_products(statistics: PerSampleStatistics) -> Tensor:
    """Return ``c_n' G`` over all parameters, shape (N,).

    Raises:
        NotMeasured: if a parameter is not covered, or the batch holds one sample.
    """
    _require_complete(statistics)
    return statistics.total_products


def gradient_squared_norm(step: Step) -> Tensor:
    """Return ``||G||^2`` over the parameters that the per-sample statistics cover."""
    return step.once(_gradient_squared_norm)


def _gradient_squared_norm(step: Step) -> Tensor:
    known = step.per_sample.squared_norms
    covered = {name: norm for name, norm in step.gradient_norms.items() if name in known}
    if not covered:
        raise NotMeasured("no per-sample gradient was seen on this step")
    return total_norm(covered).square()


def gradient_variance(squared_norms: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return ``V = 1/(N-1) sum ||g_n - G||^2`` from the contributions' squared norms and ``||G||^2``."""
    count = squared_norms.numel()
    # Rounding can push the difference below zero when all samples agree.
    return ((count * squared_norms.sum() - squared_gradient_norm) * (count / (count - 1))).clamp(min=0)


class SignalToNoise(NamedTuple):
    """Sums over the elements j of a parameter, the noise damped by :data:`DAMPING`.

    Attributes:
        population: Sum of ``G_j^2 / (var_j + 1e-5)``, ``var_j = 1/N sum g_nj^2 - G_j^2``, a scalar tensor.
        sample: Sum of ``G_j^2 / (s_j + 1e-5)``, ``s_j = N/(N-1) var_j`` the sample variance.
        elements: How many there are.
    """

    population: Tensor
    sample: Tensor
    elements: int


def signal_to_noise(step: Step) -> Mapping[str, SignalToNoise]:
    """Return signal over noise by parameter, made once a step: what it is made of is as large as the parameters.

    Raises:
        NotMeasured: if a parameter is not covered, or the batch holds one sample.
    """
    return step.once(_signal_to_noise)


def _signal_to_noise(step: Step) -> Mapping[str, SignalToNoise]:
    statistics, gradient = step.per_sample, step.gradient
    _require_complete(statistics)
    found = {}
    for name, sum_of_squares in statistics.sum_of_squares.items():
        if not sum_of_squares.numel():
            continue
        known = gradient.get(name)
        if known is None:  # the parameter does not take part in the loss
            nothing = sum_of_squares.new_zeros(())
            found[name] = SignalToNoise(nothing, nothing, sum_of_squares.numel())
        else:
            known = (known.to_dense() if known.is_sparse else known).to(sum_of_squares.dtype)
            found[name] = damped_ratios(known, sum_of_squares, statistics.batch_size)
    return found


def damped_ratios(gradient: Tensor, sum_of_squares: Tensor, batch_size: int) -> SignalToNoise:
    """Return signal over noise of one parameter from ``G_j`` and the contributions' ``sum_n c_nj^2``.

    On a CPU a long parameter is gone through in pieces: what is made on the way stays small, and in the cache.
    """
    pieces = [
        _damped_ratios(gradient_piece, squares_piece, batch_size)
        for gradient_piece, squares_piece in zip(in_pieces(gradient), in_pieces(sum_of_squares), strict=True)
    ]
    population, sample = pieces[0] if len(pieces) == 1 else (torch.stack(parts).sum() for parts in zip(*pieces, strict=True))
    return SignalToNoise(population, sample, gradient.numel())


def _damped_ratios(gradient: Tensor, sum_of_squares: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    # Everything is divided by N, which saves a pass over the elements: sum c_nj^2 - G_j^2 / N is var_j / N.
    damping = DAMPING / batch_size
    noise = torch.addcmul(sum_of_squares, gradient, gradient, value=-1 / batch_size)
    noise.clamp_(min=0).add_(damping)  # rounding can push the difference below zero when all samples agree
    ratios = gradient / noise
    population = torch.dot(ratios, gradient) / batch_size
    share = (batch_size - 1) / batch_size  # s_j + 1e-5 = (var_j + 1e-5 share) / share
    torch.div(gradient, noise.sub_(damping * (1 - share)), out=ratios)
    return population, torch.dot(ratios, gradient) * (share / batch_size)


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
