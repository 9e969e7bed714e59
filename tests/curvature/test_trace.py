from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cockpit_lite.curvature import estimate_trace
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO


def symmetric(dimension: int) -> Tensor:
    matrix = torch.randn(dimension, dimension, dtype=torch.float64)
    return matrix + matrix.T + 5 * torch.eye(dimension, dtype=torch.float64)


def test_is_unbiased_and_its_standard_error_is_right() -> None:
    matrix, generator = symmetric(40), torch.Generator().manual_seed(0)
    like = torch.empty(40, dtype=torch.float64)
    estimates = [estimate_trace(lambda v: matrix @ v, like, 6, generator) for _ in range(2000)]
    values = torch.stack([estimate.value for estimate in estimates])
    spread = values.std()
    assert (values.mean() - matrix.trace()).abs() < 4 * spread / 2000**0.5
    # Hutchinson with signs: variance 2 sum of squares off the diagonal, over the number of samples.
    off = matrix - torch.diag(matrix.diagonal())
    assert spread == pytest.approx((2 * off.square().sum() / 6).sqrt().item(), rel=0.1)
    errors = torch.stack([estimate.standard_error for estimate in estimates if estimate.standard_error is not None])
    assert errors.square().mean().sqrt() == pytest.approx(spread.item(), rel=0.1)


def test_a_diagonal_matrix_needs_one_sample() -> None:
    diagonal = torch.arange(10.0)
    estimate = estimate_trace(lambda v: diagonal * v, diagonal, 2, torch.Generator())
    assert estimate.value == 45
    assert estimate.standard_error == 0


@pytest.mark.parametrize("samples", [7, 8])
def test_is_exact_where_there_are_no_more_rows_than_samples(samples: int) -> None:
    matrix = symmetric(7)
    estimate = estimate_trace(lambda v: matrix @ v, matrix[0], samples, torch.Generator())
    assert estimate.standard_error is None
    torch.testing.assert_close(estimate.value, matrix.trace())


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    matrix, before = symmetric(30), torch.get_rng_state()
    values = [estimate_trace(lambda v: matrix @ v, matrix[0], 3, torch.Generator().manual_seed(s)).value for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "rnn"])
def test_lies_within_its_error_on_a_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature()
    estimate = estimate_trace(curvature.product, curvature.flat_gradient(), 20, curvature.generator)
    exact = reference.hessian(ZOO[name], watched.model, watched.batch).trace()
    assert estimate.standard_error is not None
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
