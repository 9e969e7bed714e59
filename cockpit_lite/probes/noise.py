"""Whole-model noise of the mini-batch gradient, from the per-sample statistics of its parameters.

Notation: sample n contributes c_n to the mini-batch gradient, G = sum c_n; g_n = N c_n is on the scale of G, so that
G = 1/N sum g_n.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.norms import in_pieces, total_norm

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample import PerSampleStatistics
    from cockpit_lite.step import Step

#: Parameters of so many elements are taken together: the operations on a shorter one take longer to start than to run.
SHORT = 1 << 15
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


class Ratios(NamedTuple):
    """Sums over elements j, the noise damped by :data:`DAMPING`.

    Attributes:
        population: Sum of ``G_j^2 / (var_j + 1e-5)``, ``var_j = 1/N sum g_nj^2 - G_j^2``.
        sample: Sum of ``G_j^2 / (s_j + 1e-5)``, ``s_j = N/(N-1) var_j`` the sample variance.
    """

    population: Tensor
    sample: Tensor


@dataclass(frozen=True)
class SignalToNoise:
    """Signal over noise of the model.

    Attributes:
        total: Sums over all elements.
        by_parameter: Parameter name -> sum of ``G_j^2 / (var_j + 1e-5)`` over its elements, a scalar tensor.
        elements: How many elements there are, by parameter name.
    """

    total: Ratios
    by_parameter: Mapping[str, Tensor]
    elements: Mapping[str, int]


def signal_to_noise(step: Step) -> SignalToNoise:
    """Return signal over noise, made once a step: what it is made of is as large as the parameters.

    Raises:
        NotMeasured: if a parameter is not covered, the batch holds one sample, or no parameter has elements.
    """
    return step.once(_signal_to_noise)


def _signal_to_noise(step: Step) -> SignalToNoise:
    statistics, gradient = step.per_sample, step.gradient
    _require_complete(statistics)
    elements = {name: squares.numel() for name, squares in statistics.sum_of_squares.items() if squares.numel()}
    if not elements:
        raise NotMeasured("no parameter has elements")
    by_parameter: dict[str, Tensor] = {}
    totals: list[Ratios] = []
    for names in _together(statistics.sum_of_squares, [name for name in elements if name in gradient]):
        squares = [statistics.sum_of_squares[name].reshape(-1) for name in names]
        known = [_dense(gradient[name]).to(squares[0]).reshape(-1) for name in names]
        if len(names) == 1:
            ratios = damped_ratios(known[0], squares[0], statistics.batch_size)
            by_parameter[names[0]] = ratios.population
            totals.append(ratios)
        else:
            terms, sample = _damped_terms(torch.cat(known), torch.cat(squares), statistics.batch_size)
            by_parameter.update(zip(names, (part.sum() for part in terms.split([elements[name] for name in names])), strict=True))
            totals.append(Ratios(terms.sum(), sample))
    if not totals:
        raise NotMeasured("no parameter takes part in the loss")
    device = totals[0].population.device
    nothing = torch.zeros((), device=device)  # of parameters that do not take part in the loss
    return SignalToNoise(
        totals[0]
        if len(totals) == 1
        else Ratios(*(torch.stack([v.to(device) for v in sums]).sum() for sums in zip(*totals, strict=True))),
        {name: by_parameter.get(name, nothing) for name in elements},
        elements,
    )


def _together(squares: Mapping[str, Tensor], names: Iterable[str]) -> list[list[str]]:
    """Return the names, those of short tensors together: a step of a small net is made of small operations."""
    alone: list[list[str]] = []
    groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name in names:
        if squares[name].numel() > SHORT:
            alone.append([name])
        else:
            groups.setdefault((squares[name].device, squares[name].dtype), []).append(name)
    return [*alone, *groups.values()]


def damped_ratios(gradient: Tensor, sum_of_squares: Tensor, batch_size: int) -> Ratios:
    """Return signal over noise of one parameter from ``G_j`` and the contributions' ``sum_n c_nj^2``.

    On a CPU a long parameter is gone through in pieces: what is made on the way stays small, and in the cache.
    """
    pairs = list(zip(in_pieces(gradient), in_pieces(sum_of_squares), strict=True))
    room = [torch.empty_like(pairs[0][1]) for _ in range(2)]
    parts = [_damped_sums(*pair, batch_size, *(each[: len(pair[0])] for each in room)) for pair in pairs]
    return parts[0] if len(parts) == 1 else Ratios(*(torch.stack(sums).sum() for sums in zip(*parts, strict=True)))


# Everything is divided by N, which saves a pass over the elements: sum c_nj^2 - G_j^2 / N is var_j / N.


def _damped_sums(gradient: Tensor, sum_of_squares: Tensor, batch_size: int, noise: Tensor, ratios: Tensor) -> Ratios:
    """Return the sums; ``noise`` and ``ratios`` are room for what is made on the way."""
    _damped_noise(gradient, sum_of_squares, batch_size, noise)
    population = torch.dot(torch.div(gradient, noise, out=ratios), gradient) / batch_size
    sample = torch.dot(torch.div(gradient, _of_a_sample(noise, batch_size), out=ratios), gradient)
    return Ratios(population, sample * ((batch_size - 1) / batch_size**2))


def _damped_terms(gradient: Tensor, sum_of_squares: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the terms of the population's sum, and the sample's sum."""
    noise = _damped_noise(gradient, sum_of_squares, batch_size, torch.empty_like(sum_of_squares))
    squared = gradient.square().mul_(1 / batch_size)
    terms = squared / noise
    sample = torch.div(squared, _of_a_sample(noise, batch_size), out=noise).sum()
    return terms, sample * ((batch_size - 1) / batch_size)


def _damped_noise(gradient: Tensor, sum_of_squares: Tensor, batch_size: int, out: Tensor) -> Tensor:
    """Put ``(var_j + 1e-5) / N`` into ``out``."""
    torch.addcmul(sum_of_squares, gradient, gradient, value=-1 / batch_size, out=out)
    return out.clamp_(min=0).add_(DAMPING / batch_size)  # rounding can push it below zero when all samples agree


def _of_a_sample(noise: Tensor, batch_size: int) -> Tensor:
    """Turn that into ``(s_j + 1e-5) (N - 1) / N^2``, in place."""
    return noise.sub_(DAMPING / batch_size**2)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


def reading(statistics: PerSampleStatistics, value: Tensor) -> Tensor | Reading:
    """Return ``value``, marked as conditional where batch normalisation couples the samples, with the statistics' note."""
    if statistics.conditional:
        return Reading(value, kind="conditional", note="conditional on the batch statistics of batch normalisation")
    return Reading(value, note=statistics.note) if statistics.note else value


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
