"""What contributions and gradient are compared along, so that a wrong number does not get out: their sum must be the gradient.

Either the inner products with the gradient are wanted anyway; or both are taken along a random direction, which is of rank one,
so that this takes a matrix-vector product a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from cockpit_lite.norms import parameter_norms
from cockpit_lite.probes.per_sample.forms.form import RankOne

#: How far the sum of the contributions may be from the gradient, relative to the sum of their magnitudes along it.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
HALF_PRECISION_TOLERANCE = 3e-2


class Check(NamedTuple):
    """Two ways to the inner product of the gradient with some direction.

    Attributes:
        contributions: Those of the contributions with it, shape (N,).
        gradient: That of the gradient, a scalar; ``None``: the direction is the gradient.
        factors: What the contributions still have to be multiplied with, shape (N,); ``None``: nothing.
    """

    contributions: Tensor
    gradient: Tensor | None
    factors: Tensor | None = None

    def scale(self) -> Tensor:
        """Return the sum of the magnitudes of the contributions."""
        products = self.contributions.double()
        return (products if self.factors is None else products * self.factors).abs().sum()


def compared(checks: Mapping[str, Check], gradient: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Return sum over n of c_n'D and G'D for every check, by one transfer from the device."""
    expected = {name: check.gradient for name, check in checks.items() if check.gradient is not None}
    if len(expected) < len(checks):
        with_itself = {name: gradient[name] for name in checks if name not in expected}
        norms = parameter_norms({name: value.to_dense() if value.is_sparse else value for name, value in with_itself.items()})
        squares = torch.stack(list(norms.values())).double().square_()
        expected.update(zip(norms, squares.unbind(), strict=True))
    found = {name: torch.dot(check.contributions, check.factors) for name, check in checks.items() if check.factors is not None}
    rows = [name for name in expected if name not in found]
    values = torch.stack([*expected.values(), *found.values()])
    if rows:
        sums = torch.stack([checks[name].contributions for name in rows]).sum(1, dtype=torch.float64)
        values = torch.cat([values, sums])
    every = values.tolist()
    both = zip([*found, *rows], every[len(expected) :], strict=True)
    of_gradient = dict(zip(expected, every, strict=False))
    return {name: (value, of_gradient[name]) for name, value in both}


def check_direction(parameter: Tensor) -> RankOne:
    """Return the two sides of the direction ``left right'`` that contributions and gradient are compared along.

    It does not depend on the gradient, so the contributions may be measured along it before that is known.
    """
    return _random_sides(parameter.shape, parameter.device, accurate_type(parameter.dtype))


def along_direction(gradient: Tensor, direction: RankOne) -> Tensor:
    """Return the inner product of the gradient with the direction, a scalar."""
    left, right, _ = direction
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    if gradient.dtype != left.dtype:
        gradient = gradient.to(left.dtype)
    if gradient.dim() > 1:
        gradient = (gradient if gradient.dim() == 2 else gradient.reshape(left.shape[0], right.shape[0])) @ right
    return torch.dot(gradient if gradient.dim() else gradient[None], left)  # what stands right of a vector is 1


def part_of_direction(direction: RankOne, shape: torch.Size, axis: int, first: int, number: int) -> RankOne:
    """Return so many places of a direction along an axis of the parameter: what a process that holds these needs of it."""
    if axis == 0:
        return RankOne(direction.left.narrow(0, first, number), direction.right)
    return RankOne(direction.left, direction.right.reshape(shape[1:]).narrow(axis - 1, first, number).reshape(-1))


@lru_cache(maxsize=128)
def ones(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return ones, to be read only."""
    return torch.ones(count, device=device, dtype=dtype)


def accurate_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type that statistics of a parameter of this type come in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1024)
def _random_sides(shape: torch.Size, device: torch.device, dtype: torch.dtype) -> RankOne:
    # by length, so that the parameters of a layer share what their deltas are along it
    left = _random(shape[0] if shape else 1, 0, device, dtype)
    if len(shape) < 3:
        return RankOne(left, _random(shape[1:].numel(), 1, device, dtype))
    channels, places = _random(shape[1], 1, device, dtype), _random(shape[2:].numel(), 2, device, dtype)
    return RankOne(left, torch.outer(channels, places).reshape(-1), (channels, tuple(places.tolist())))


@lru_cache(maxsize=128)
def _random(size: int, seed: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return random numbers from a generator of our own: the user's are not touched."""
    if size == 1:
        return torch.ones(1, device=device, dtype=dtype)
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(device, dtype)
