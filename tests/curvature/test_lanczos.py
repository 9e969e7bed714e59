from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from cockpit_lite.curvature import top_eigenpair
from tests.curvature.cases import forward
from tests.zoo import ZOO


def matrix(eigenvalues: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


def product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda vector: matrix @ vector


def random_start(dimension: int) -> Tensor:
    return torch.randn(dimension, dtype=torch.float64)


@pytest.mark.parametrize("check_every", [1, 2, 5])
def test_finds_the_largest_eigenvalue_and_its_vector(check_every: int) -> None:
    A = matrix(torch.linspace(0, 1, 200).pow(4) * 10)
    pair = top_eigenpair(
        product(A), random_start(200), tolerance=1e-8, max_products=100, max_vectors=100, check_every=check_every
    )
    assert pair.converged
    assert pair.value == pytest.approx(10, rel=1e-10)
    assert pair.vector.norm().item() == pytest.approx(1)
    assert (A @ pair.vector - pair.value * pair.vector).norm().item() == pytest.approx(pair.residual, rel=1e-4, abs=1e-10)
    assert pair.residual <= 1e-8 * pair.value


def test_largest_is_algebraic_and_not_in_magnitude() -> None:
    eigenvalues = torch.cat([torch.tensor([-100.0, -50.0, 3.0]), torch.linspace(-1, 1, 97)])
    pair = top_eigenpair(product(matrix(eigenvalues)), random_start(100), tolerance=1e-6, max_products=60, max_vectors=60)
    assert pair.value == pytest.approx(3, rel=1e-8)


def test_a_matrix_with_negative_eigenvalues_only() -> None:
    pair = top_eigenpair(
        product(matrix(-torch.arange(1.0, 31))), random_start(30), tolerance=1e-9, max_products=30, max_vectors=30
    )
    assert pair.value == pytest.approx(-1, rel=1e-8)


@pytest.mark.parametrize("name", ["mlp", "resnet_group_norm", "lstm", "vit"])
def test_agrees_with_scipy_on_hessians(name: str) -> None:
    curvature = forward(ZOO[name], torch.float64).curvature()
    operator = pytest.importorskip("scipy.sparse.linalg").LinearOperator(
        (curvature.dimension, curvature.dimension),
        lambda v: curvature.product(torch.from_numpy(v.ravel())).numpy(),
        dtype="float64",
    )
    (expected,) = eigsh(operator, k=1, which="LA", return_eigenvectors=False, tol=1e-6)
    pair = top_eigenpair(curvature.product, curvature.flat_gradient(), tolerance=1e-4, max_products=40, max_vectors=40)
    assert pair.converged
    assert pair.value == pytest.approx(expected, rel=1e-5)


def test_the_budget_of_products_holds_and_the_residual_tells() -> None:
    A = matrix(torch.linspace(9, 10, 300))
    spent = []

    def counted(vector: Tensor) -> Tensor:
        spent.append(1)
        return A @ vector

    pair = top_eigenpair(counted, random_start(300), tolerance=1e-6, max_products=7)
    assert len(spent) == pair.products == 7
    assert not pair.converged
    assert pair.residual > 1e-6 * pair.value
    assert pair.value <= 10
    # Some eigenvalue lies within the residual.
    assert torch.linalg.eigvalsh(A).sub(pair.value).abs().min() <= pair.residual


@pytest.mark.parametrize("vectors", [2, 3, 5])
def test_with_little_memory_it_restarts(vectors: int) -> None:
    A = matrix(torch.cat([torch.tensor([10.0, 5.0]), torch.linspace(0, 1, 98)]))
    pair = top_eigenpair(product(A), random_start(100), tolerance=1e-4, max_products=30, max_vectors=vectors)
    assert pair.converged
    assert vectors < pair.products <= 30
    assert pair.value == pytest.approx(10, rel=1e-6)


def test_a_good_start_saves_products() -> None:
    A = matrix(torch.linspace(0, 1, 300).pow(6) * 10)
    cold = top_eigenpair(product(A), random_start(300), tolerance=1e-3, max_products=80, max_vectors=80)
    near = cold.vector + 0.05 * random_start(300) / 300**0.5
    warm = top_eigenpair(product(A), near, tolerance=1e-3, max_products=80, max_vectors=80)
    assert warm.products < cold.products
    assert warm.value == pytest.approx(10, rel=1e-4)


def test_a_little_noise_leaves_an_eigenvector_that_was_overtaken() -> None:
    A = torch.diag(torch.cat([torch.tensor([1.0, 3.0]), torch.zeros(98)]))
    old = torch.eye(100)[0]
    stuck = top_eigenpair(product(A), old)
    assert (stuck.value, stuck.residual) == (1.0, 0.0)
    free = top_eigenpair(product(A), old + 0.1 * torch.randn(100) / 10)
    assert free.value == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("check_every", [1, 3])
def test_stops_at_an_invariant_subspace(dtype: torch.dtype, check_every: int) -> None:
    A = torch.diag(torch.tensor([-5.0, -4.0] + [-1.0] * 20, dtype=dtype))
    start = torch.zeros(22, dtype=dtype)
    start[:2] = 1
    pair = top_eigenpair(product(A), start, tolerance=1e-9, check_every=check_every)
    # Directions that were never entered count neither as 0 nor as -1.
    assert pair.value == pytest.approx(-4, rel=1e-5)
    assert pair.converged
    assert pair.products <= 3


def test_the_zero_matrix_and_the_one_by_one_matrix() -> None:
    zero = top_eigenpair(lambda vector: 0 * vector, torch.ones(5))
    assert (zero.value, zero.residual, zero.products, zero.converged) == (0.0, 0.0, 1, True)
    single = top_eigenpair(lambda vector: 7 * vector, torch.tensor([0.1]))
    assert single.value == pytest.approx(7)
    assert (single.residual, single.products, single.converged) == (pytest.approx(0, abs=1e-5), 1, True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite_end_it_with_nan(bad: float) -> None:
    pair = top_eigenpair(lambda vector: vector * bad, torch.ones(5))
    assert math.isnan(pair.value)
    assert pair.products == 1
    assert not pair.converged
