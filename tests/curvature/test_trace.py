from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cockpit_lite.curvature.trace import RandomProducts, TraceEstimate, beside, exact_trace, random_signs, trace_from
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO


def symmetric(dimension: int) -> Tensor:
    matrix = torch.randn(dimension, dimension, dtype=torch.float64)
    return matrix + matrix.T + 2 * torch.eye(dimension, dtype=torch.float64)


def estimate(matrix: Tensor, samples: int, generator: torch.Generator, basis: Tensor | None = None) -> TraceEstimate:
    basis = matrix[:0] if basis is None else basis
    signs = torch.stack([random_signs(matrix[0], generator) for _ in range(samples)])
    known = (basis @ matrix @ basis.T).trace().item()
    return trace_from(beside(RandomProducts(signs, signs @ matrix), basis, basis @ matrix), known)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("samples", [1, 3])
def test_is_unbiased_and_its_standard_error_is_right(samples: int, deflated: bool) -> None:
    matrix, generator = symmetric(40), torch.Generator().manual_seed(0)
    basis = torch.linalg.eigh(matrix)[1][:, -5:].T if deflated else None
    estimates = [estimate(matrix, samples, generator, basis) for _ in range(2000)]
    values = torch.stack([found.value for found in estimates])
    spread = values.std()
    assert (values.mean() - matrix.trace()).abs() < 4 * spread / 2000**0.5
    errors = torch.stack([found.standard_error for found in estimates if found.standard_error is not None])
    # The bound leaves the diagonal out, which is a small part here; it must never be too small on average.
    assert spread <= errors.square().mean().sqrt() * 1.05
    assert errors.square().mean().sqrt() <= spread * 1.2


def test_what_is_known_of_the_outliers_leaves_the_variance() -> None:
    A = torch.diag(torch.cat([torch.tensor([100.0, 50.0, 20.0]), torch.linspace(0, 1, 97)])).double()
    rotation, _ = torch.linalg.qr(torch.randn(100, 100, dtype=torch.float64))
    matrix, basis = rotation @ A @ rotation.T, rotation[:, :3].T
    plain = estimate(matrix, 1, torch.Generator().manual_seed(0)).standard_error
    deflated = estimate(matrix, 1, torch.Generator().manual_seed(0), basis)
    assert plain is not None and deflated.standard_error is not None
    assert deflated.standard_error < plain / 10
    assert deflated.value == pytest.approx(A.trace().item(), rel=0.1)


def test_is_exact_by_unit_vectors() -> None:
    matrix = symmetric(7)
    torch.testing.assert_close(exact_trace(lambda v: matrix @ v, matrix[0]), matrix.trace())


def test_the_generator_decides_and_the_global_one_is_left_alone() -> None:
    matrix, before = symmetric(30), torch.get_rng_state()
    values = [estimate(matrix, 3, torch.Generator().manual_seed(seed)).value for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "rnn"])
def test_lies_within_its_error_on_a_hessian(name: str, searched: bool) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature()
    if searched:
        curvature.top_eigenpairs()
    found = curvature.trace(20)
    exact = reference.hessian(ZOO[name], watched.model, watched.batch).trace()
    assert found.standard_error is not None
    assert abs(found.value - exact) < 4 * found.standard_error
