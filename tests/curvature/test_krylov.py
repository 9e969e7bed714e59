from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from cockpit_lite.curvature import Krylov
from cockpit_lite.curvature.krylov import ritz_weights
from tests.curvature.cases import forward
from tests.zoo import ZOO


def matrix(eigenvalues: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


def random(dimension: int) -> Tensor:
    return torch.randn(dimension, dtype=torch.float64)


class Search(Krylov):
    """Of a dense matrix; counts on its own."""

    def __init__(self, dense: Tensor, *starts: Tensor, **options: object):
        self.count = 0
        self.dense = dense

        def product(vector: Tensor) -> Tensor:
            self.count += 1
            return dense @ vector

        starts = starts or (torch.randn(len(dense)).to(dense),)
        super().__init__(product, starts, torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]


def test_both_ends_with_residuals_and_errors_that_hold() -> None:
    A = matrix(torch.cat([torch.tensor([-4.0, -3.0, 6.0, 8.0, 10.0]), torch.linspace(-0.5, 0.5, 195)]))
    search = Search(A)
    top, bottom = search.top(3, tolerance=1e-3, max_products=60), search.bottom(2, tolerance=1e-3, max_products=60)
    assert top.converged and bottom.converged
    assert top.values == pytest.approx((10, 8, 6), rel=1e-3)
    assert bottom.values == pytest.approx((-4, -3), rel=4e-3)
    for pairs, exact in ((top, (10, 8, 6)), (bottom, (-4, -3))):
        for value, residual, error, vector, true in zip(
            pairs.values, pairs.residuals, pairs.errors, pairs.vectors, exact, strict=True
        ):
            assert vector.norm().item() == pytest.approx(1)
            assert (A @ vector - value * vector).norm().item() == pytest.approx(residual, rel=1e-4, abs=1e-9)
            assert abs(value - true) <= error <= residual


def test_what_one_question_has_spent_the_next_one_finds() -> None:
    search = Search(matrix(torch.cat([torch.tensor([10.0, 5.0]), torch.linspace(-1, 1, 98)])))
    first = search.top(tolerance=1e-2)
    spent = search.spent
    assert search.top(tolerance=1e-2).values == first.values
    assert search.spent == spent == search.count
    closer = search.top(tolerance=1e-6, max_products=30)
    assert closer.errors[0] < first.errors[0]
    assert search.spent > spent


def test_largest_is_algebraic_and_not_in_magnitude() -> None:
    eigenvalues = torch.cat([torch.tensor([-100.0, -50.0, 3.0]), torch.linspace(-1, 1, 97)])
    assert Search(matrix(eigenvalues)).top(tolerance=1e-4, max_products=60).values[0] == pytest.approx(3, rel=1e-3)


def test_a_matrix_with_negative_eigenvalues_only() -> None:
    found = Search(matrix(-torch.arange(1.0, 31))).top(tolerance=1e-9, max_products=100)
    assert found.values[0] == pytest.approx(-1, rel=1e-8)


@pytest.mark.parametrize("name", ["mlp", "resnet_group_norm", "lstm", "vit"])
def test_agrees_with_scipy_on_hessians(name: str) -> None:
    curvature = forward(ZOO[name], torch.float64).curvature()
    operator = LinearOperator(
        (curvature.dimension, curvature.dimension),
        lambda v: curvature.product(torch.from_numpy(v.ravel())).numpy(),
        dtype="float64",
    )
    for end, which in (("top", "LA"), ("bottom", "SA")):
        expected = sorted(eigsh(operator, k=3, which=which, return_eigenvectors=False, tol=1e-6), reverse=end == "top")
        found = getattr(curvature.krylov, end)(3, tolerance=1e-4, max_products=200)
        assert found.converged
        assert found.values == pytest.approx(expected, rel=1e-3, abs=1e-4 * abs(curvature.krylov.ritz_values[-1]))


def test_the_budget_of_products_holds_and_the_residual_tells() -> None:
    A = matrix(torch.linspace(9, 10, 300))
    search = Search(A)
    found = search.top(tolerance=1e-6, max_products=7)
    assert search.count == search.spent == 7
    assert not found.converged
    assert found.values[0] <= 10
    # Some eigenvalue lies within the residual.
    assert torch.linalg.eigvalsh(A).sub(found.values[0]).abs().min() <= found.residuals[0]


@pytest.mark.parametrize("vectors", [4, 5, 7])
def test_with_little_memory_the_basis_is_cut_and_no_product_is_lost(vectors: int) -> None:
    A = matrix(torch.cat([torch.tensor([10.0, 9.0]), torch.linspace(0, 8, 98)]))
    search = Search(A, memory=vectors * 2 * 100 * 8)
    assert search.capacity == vectors
    found = search.top(tolerance=1e-5, max_products=60)
    assert found.converged
    assert vectors < search.spent <= 60
    assert found.values[0] == pytest.approx(10, rel=1e-4)
    assert (search.basis @ search.basis.T - torch.eye(len(search.basis))).abs().max() < 1e-10
    assert (A @ search.basis.T - search.basis_products.T).abs().max() < 1e-10


def test_a_known_product_is_not_computed_again() -> None:
    A, start = matrix(torch.linspace(0, 1, 50).pow(8)), random(50)
    known, unknown = Search(A, start, known_products=[A @ start]), Search(A, start)
    assert known.top().values == pytest.approx(unknown.top().values)
    assert known.count == unknown.count - 1


@pytest.mark.parametrize("every", [1, 3])
def test_known_products_of_several_starts(every: int) -> None:
    A = matrix(torch.linspace(0, 1, 50).pow(8))
    first, second = random(50), random(50)
    starts = [first, second, first + 1e-6 * second, first - second]  # two of which have nothing new
    search = Search(A, *starts, known_products=[A @ start for start in starts], look_every=every)
    search.top(tolerance=1e-3, max_products=1)
    assert search.count == search.spent == 1
    worth = search.basis.norm(dim=1) > 0.5  # rows of zeros are left out
    assert worth.sum() == 3
    assert (A @ search.basis[worth].T - search.basis_products[worth].T).abs().max() < 1e-10
    assert (search.basis[worth] @ search.basis[worth].T - torch.eye(3)).abs().max() < 1e-10


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_start_that_is_spanned_already_joins_the_first_residual(share: float) -> None:
    torch.manual_seed(0)
    A, first = matrix(torch.linspace(-1, 1, 100)), random(100)
    image = A @ first
    spanned, _ = torch.linalg.qr(torch.stack([first, image], 1))
    rest = random(100)
    rest -= spanned @ (spanned.T @ rest)
    rest /= rest.norm()
    inside = image - first * (first @ image) / first.square().sum()
    start = 7 * ((1 - share**2) ** 0.5 * inside / inside.norm() + share * rest)
    search = Search(A, first, start, known_products=[image])
    search.top(tolerance=1e-3, max_products=2)
    assert search.spent == search.count == 2
    direction = search.basis[1]
    if share == 0.9:  # it is taken by itself
        assert (direction @ start / start.norm()).abs() > 0.99
    else:
        assert (direction @ inside / inside.norm()).square().item() == pytest.approx(1 / 1.09 if share else 1, abs=0.02)
        assert (direction @ rest).square().item() == pytest.approx(0.09 / 1.09 if share else 0, abs=0.02)


def test_ritz_vectors_in_the_span_of_any_vectors() -> None:
    A, X = matrix(torch.linspace(-1, 1, 30)), torch.randn(5, 30, dtype=torch.float64)
    X[4] = X[0] + 1e-9 * X[1]  # nearly the same
    basis, _ = torch.linalg.qr(X[:4].T)
    expected = torch.linalg.eigvalsh(basis.T @ A @ basis).flip(0)[:2]
    vectors = ritz_weights(X @ A @ X.T, X @ X.T, 2) @ X
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close((vectors @ A @ vectors.T).diagonal(), expected)
    assert len(ritz_weights(torch.full((2, 2), math.nan).double(), torch.eye(2).double(), 2)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_leads_out_of_an_invariant_subspace(dtype: torch.dtype) -> None:
    A = torch.diag(torch.tensor([-5.0, -4.0] + [-1.0] * 20, dtype=dtype))
    start = torch.zeros(22, dtype=dtype)
    start[:2] = 1
    assert Search(A, start).top(tolerance=1e-4).values[0] == pytest.approx(-1, rel=1e-4)


def test_starts_that_are_no_use_are_left_out() -> None:
    A = matrix(torch.linspace(0, 1, 50).pow(8))
    start = random(50)
    search = Search(A, torch.zeros(50, dtype=torch.float64), start, 2 * start, start * math.nan)
    assert search.top(tolerance=1e-5, max_products=40).values[0] == pytest.approx(1, rel=1e-4)
    only_zero = Search(A, torch.zeros(50, dtype=torch.float64))
    assert only_zero.top(tolerance=1e-5, max_products=40).values[0] == pytest.approx(1, rel=1e-4)


def test_the_zero_matrix_and_the_one_by_one_matrix() -> None:
    zero = Search(torch.zeros(5, 5, dtype=torch.float64))
    assert (zero.top().values, zero.top().residuals, zero.top().converged) == ((0.0,), (0.0,), True)
    assert zero.spent == 1
    single = Search(torch.tensor([[7.0]]), torch.tensor([0.1]))
    found = single.top()
    assert (found.values, found.converged, single.spent) == ((pytest.approx(7),), True, 1)
    assert len(single.top(3).values) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite_end_it_with_nan(bad: float) -> None:
    search = Search(torch.full((5, 5), bad))
    found = search.top()
    assert math.isnan(found.values[0])
    assert search.spent == 1
    assert not found.converged


def test_the_global_random_numbers_are_left_alone() -> None:
    A, before = matrix(torch.linspace(0, 1, 50)), torch.get_rng_state()
    start: Callable[[int], Tensor] = torch.ones
    Search(A, start(50).double()).top()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("every", [2, 3, 5])
def test_on_an_accelerator_the_host_looks_now_and_then(every: int) -> None:
    A = matrix(torch.cat([torch.tensor([-4.0, 8.0, 10.0]), torch.linspace(-0.5, 0.5, 97)]))
    search = Search(A, random(100), look_every=every)
    top, bottom = search.top(2, tolerance=1e-4, max_products=60), search.bottom(tolerance=1e-3, max_products=60)
    assert top.converged and bottom.converged
    assert top.values == pytest.approx((10, 8), rel=1e-4)
    assert bottom.values == pytest.approx((-4,), rel=1e-2)
    assert (search.basis @ search.basis.T - torch.eye(len(search.basis))).abs().max() < 1e-10
    budget = Search(matrix(torch.linspace(9, 10, 300)), random(300), look_every=every)
    assert not budget.top(tolerance=1e-9, max_products=7).converged
    assert budget.count == 7


@pytest.mark.parametrize("every", [2, 3])
def test_rows_of_zeros_are_left_out(every: int) -> None:
    A = torch.diag(torch.tensor([-5.0, -4.0] + [-1.0] * 20, dtype=torch.float64))
    start = torch.zeros(22, dtype=torch.float64)
    start[:2] = 1
    search = Search(A, 0 * start, start, 2 * start, start * math.nan, look_every=every)
    assert search.top(tolerance=1e-4, max_products=40).values[0] == pytest.approx(-1, rel=1e-4)
    zero = Search(torch.zeros(5, 5, dtype=torch.float64), look_every=every)
    assert zero.top().values == (0.0,)
    nothing = Search(A, 0 * start, known_products=[0 * start], look_every=every)
    assert nothing.top(tolerance=1e-4, max_products=40).values[0] == pytest.approx(-1, rel=1e-4)
    bad = Search(torch.full((5, 5), math.nan, dtype=torch.float64), look_every=every)
    assert math.isnan(bad.top().values[0])
    single = Search(torch.tensor([[7.0]]), torch.tensor([0.1]), look_every=every)
    assert single.top().values[0] == pytest.approx(7)
