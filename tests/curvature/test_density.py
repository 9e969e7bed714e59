from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from cockpit_lite.curvature.density import spectral_density, tridiagonal
from cockpit_lite.curvature.trace import random_signs
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO


def rotated(eigenvalues: Tensor) -> Tensor:
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


def signs(dimension: int, count: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([random_signs(torch.empty(dimension, dtype=dtype), generator) for _ in range(count)])


def distance(nodes: Tensor, weights: Tensor, eigenvalues: Tensor) -> float:
    return float(wasserstein_distance(nodes.numpy(), eigenvalues.numpy(), np.maximum(weights.numpy(), 0)))


def test_all_steps_give_all_moments_that_the_start_sees() -> None:
    A, starts = rotated(torch.linspace(-1, 2, 12)), signs(12)
    found = spectral_density(lambda v: A @ v, starts, 12)
    assert found.weights.sum() == pytest.approx(1)
    for power in range(1, 8):
        expected = starts[0] @ torch.linalg.matrix_power(A, power) @ starts[0] / 12
        assert (found.weights * found.nodes**power).sum() == pytest.approx(expected.item())


def test_few_steps_give_the_moments_up_to_twice_their_number() -> None:
    A, starts = rotated(torch.linspace(-1, 2, 50)), signs(50)
    found = spectral_density(lambda v: A @ v, starts, 4)
    assert found.products == 4
    for power in range(1, 8):
        expected = starts[0] @ torch.linalg.matrix_power(A, power) @ starts[0] / 50
        assert (found.weights * found.nodes**power).sum() == pytest.approx(expected.item())


def test_a_known_first_product_is_not_computed_again() -> None:
    A, starts = rotated(torch.linspace(-1, 2, 50)), signs(50, 2)
    spent = []

    def product(vector: Tensor) -> Tensor:
        spent.append(1)
        return A @ vector

    plain = spectral_density(product, starts, 5)
    assert len(spent) == plain.products == 10
    known = spectral_density(product, starts, 5, starts @ A)
    assert len(spent) - 10 == known.products == 8
    torch.testing.assert_close(plain.nodes, known.nodes)
    torch.testing.assert_close(plain.weights, known.weights)


@pytest.mark.parametrize("name", ["mlp", "conv_1d", "rnn"])
def test_is_near_the_dense_spectrum_of_a_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    eigenvalues = torch.linalg.eigvalsh(reference.hessian(ZOO[name], watched.model, watched.batch))
    found = watched.curvature().spectral_density(20, 10)
    width = (eigenvalues[-1] - eigenvalues[0]).item()
    assert distance(found.nodes, found.weights, eigenvalues) < 0.02 * width


def test_the_gauss_newton_matrix_has_a_density_of_its_own() -> None:
    watched = forward(ZOO["rnn"], torch.float64)
    found = watched.curvature(forward=watched.call).spectral_density(15, 5, "gauss_newton")
    assert found.nodes.min() > -1e-10
    assert found.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_lies_behind_an_invariant_subspace_has_no_weight(dtype: torch.dtype) -> None:
    A = torch.diag(torch.tensor([3.0, 3.0, 3.0, -1.0, -1.0, -1.0], dtype=dtype))
    found = spectral_density(lambda v: A @ v, signs(6, dtype=dtype), 5)
    values = dict(zip(found.nodes[found.weights > 1e-6].tolist(), found.weights[found.weights > 1e-6].tolist(), strict=True))
    assert sorted(values) == pytest.approx([-1, 3], rel=1e-5)
    assert list(values.values()) == pytest.approx([0.5, 0.5], rel=1e-5)


def test_the_zero_matrix_and_the_one_by_one_matrix() -> None:
    zero = spectral_density(lambda v: 0 * v, signs(7), 4)
    assert (zero.nodes * zero.weights).abs().sum() == 0
    single = spectral_density(lambda v: 7 * v, signs(1), 4)
    assert (single.nodes.tolist(), single.weights.tolist()) == ([7.0], [1.0])


def test_what_is_not_finite_is_shown() -> None:
    assert spectral_density(lambda v: v * math.nan, signs(7), 4).nodes.isnan().all()


def test_the_smoothed_density_has_mass_one() -> None:
    A = rotated(torch.linspace(-1, 2, 30))
    grid = torch.linspace(-3, 4, 2000)
    density = spectral_density(lambda v: A @ v, signs(30), 8).smoothed(grid, 0.1)
    assert torch.trapezoid(density, grid.double()) == pytest.approx(1, abs=1e-3)


def test_the_tridiagonal_matrix_is_the_projection() -> None:
    A, start = rotated(torch.linspace(-1, 2, 20)), signs(20)[0]
    small = tridiagonal(lambda v: A @ v, start, 6)
    assert torch.equal(small, small.T)
    assert torch.linalg.eigvalsh(small)[-1] <= 2 + 1e-9
    assert (small.triu(2) == 0).all()
