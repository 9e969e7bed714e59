"""Spectral density and condition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from cockpit_lite.curvature import Curvature
from cockpit_lite.curvature.trace import RandomProducts, beside
from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instrument import Instrument, Reading
from cockpit_lite.instruments.condition import Condition, median_of_the_rest, rms_of_the_rest
from cockpit_lite.instruments.spectral_density import SpectralDensity, flat_share
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO


def step_with(curvature: Curvature) -> Step:
    step = Step(0, curvature.parameters)
    step.observed["curvature"] = curvature
    return step


def measure(curvature: Curvature, instrument: Instrument, step: Step | None = None) -> dict[str, Any]:
    readings = instrument.measure(step_with(curvature) if step is None else step)
    assert all(isinstance(reading, Reading) and reading.kind == "estimated" for reading in readings.values())
    return {name: reading.value for name, reading in readings.items() if isinstance(reading, Reading)}


def quadratic(eigenvalues: list[float], seed: int = 0) -> Curvature:
    diagonal = torch.tensor(eigenvalues, dtype=torch.float64)
    weight = nn.Parameter(torch.ones_like(diagonal))
    return Curvature(0.5 * (diagonal * weight**2).sum(), {"w": weight}, torch.Generator().manual_seed(seed))


def test_with_as_many_nodes_as_eigenvalues_they_are_the_spectrum() -> None:
    """On a diagonal matrix every sign vector sees every eigenvalue alike."""
    nodes, weights = measure(quadratic([-1.0, 0.5, 2.0, 7.0]), SpectralDensity(steps=4))["spectral_density"]
    assert nodes.tolist() == pytest.approx([-1.0, 0.5, 2.0, 7.0])
    assert weights.tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "rnn"])
def test_the_moments_are_those_of_the_dense_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    eigenvalues = torch.linalg.eigvalsh(reference.hessian(ZOO[name], watched.model, watched.batch))
    nodes, weights = measure(watched.curvature(), SpectralDensity(steps=8, probes=100))["spectral_density"]
    known = ~nodes.isnan()
    nodes, weights = nodes[known], weights[known]
    assert weights.sum().item() == pytest.approx(1)
    size = eigenvalues.abs().max()
    for power in (1, 2, 3):
        found = (weights * (nodes / size) ** power).sum().item()
        deviation = (2 * (eigenvalues / size).pow(2 * power).sum().item() / 100) ** 0.5 / len(eigenvalues)
        assert abs(found - (eigenvalues / size).pow(power).mean().item()) < 4 * deviation


def test_a_small_model_has_fewer_eigenvalues_than_nodes() -> None:
    table = measure(quadratic([3.0, 1.0]), SpectralDensity(steps=5))["spectral_density"]
    assert table.shape == (2, 8)
    assert table[0, :2].tolist() == pytest.approx([1.0, 3.0])
    assert table[:, 2:].isnan().all()


def test_flat_directions() -> None:
    spectrum = [100.0, 50.0, *[1e-3] * 97, -80.0]
    assert flat_share(torch.tensor(spectrum), torch.full((100,), 0.01)).item() == pytest.approx(0.97)
    assert measure(quadratic(spectrum), SpectralDensity(steps=4))["flat_directions"].item() == pytest.approx(0.97)
    weight = nn.Parameter(torch.ones(20))
    linear = Curvature(weight.sum(), {"w": weight}, torch.Generator())
    assert measure(linear, SpectralDensity())["flat_directions"].item() == 1


def test_what_is_not_finite_is_shown() -> None:
    readings = measure(quadratic([math.nan, 1.0, 2.0]), SpectralDensity())
    assert math.isnan(readings["flat_directions"])


def test_condition_shares_the_products_of_the_density_and_the_search() -> None:
    curvature = forward(ZOO["mlp"]).curvature()
    step = step_with(curvature)
    measure(curvature, SpectralDensity(), step)
    curvature.top_eigenpairs()
    spent = curvature.products
    measure(curvature, Condition(), step)
    assert curvature.products == spent


@pytest.mark.parametrize("dimension", [7, 8, 40])
def test_the_median_of_a_known_spectrum(dimension: int) -> None:
    generator = torch.Generator().manual_seed(dimension)
    eigenvalues = torch.randn(dimension, generator=generator, dtype=torch.float64).sort().values
    rest = eigenvalues[:-1].abs().sort().values
    found = median_of_the_rest(eigenvalues, torch.full((dimension,), 1 / dimension, dtype=torch.float64), dimension)
    assert found.item() == rest[(dimension - 2) // 2].item()  # the lower one of the two in the middle


def test_the_largest_is_left_out_of_the_median_even_where_it_weighs_much() -> None:
    nodes, weights = torch.tensor([1.0, 10.0]).double(), torch.tensor([0.5, 0.5]).double()
    assert median_of_the_rest(nodes, weights, 2).item() == 1
    assert median_of_the_rest(nodes, torch.tensor([0.3, 0.7]).double(), 10).item() == 10


def test_the_root_mean_square_of_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(40, 40, generator=generator, dtype=torch.float64)
    matrix = factor + factor.T
    values, vectors = torch.linalg.eigh(matrix)
    basis = vectors[:, -3:].T
    signs = torch.randint(0, 2, (20_000, 40), generator=generator).double() * 2 - 1
    found = rms_of_the_rest(beside(RandomProducts(signs, signs @ matrix), basis, basis @ matrix), 37)
    assert found.item() == pytest.approx(values[:-3].square().mean().sqrt().item(), rel=0.02)


def test_condition_of_a_known_spectrum() -> None:
    readings = measure(quadratic([1_000.0, 60.0, *[0.5] * 61, -0.5]), Condition())
    assert float(readings["condition"]) == pytest.approx(2_000, rel=1e-3)
    # The rest is everything but what the search has found, and of the second outlier it finds most, not all.
    assert float(readings["outliers_over_bulk"]) == pytest.approx(2_000, rel=0.1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: quadratic([4.0]), "one weight"),
        (lambda: quadratic([-4.0, -1.0, -2.0]), "bends up nowhere"),
    ],
)
def test_without_a_condition_there_is_a_reason(make: Any, reason: str) -> None:
    with pytest.raises(NotMeasured, match=reason):
        measure(make(), Condition())


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SpectralDensity, {"steps": 1}),
        (SpectralDensity, {"probes": 0}),
        (Condition, {"tolerance": 0.0}),
        (Condition, {"max_products": 1}),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(SetupError):
        make(**options)


@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "rnn"])
def test_beside_known_eigenvalues_the_mean_is_that_of_the_dense_hessian(name: str) -> None:
    """And the largest eigenvalue is a node with the weight of one: on many draws, since a single one spreads."""
    watched = forward(ZOO[name], torch.float64)
    eigenvalues = torch.linalg.eigvalsh(reference.hessian(ZOO[name], watched.model, watched.batch))
    curvature, means = watched.curvature(), []
    curvature.top_eigenpairs(tolerance=1e-6, max_products=7)
    for _ in range(60):
        found = curvature.density_beside_eigenvalues(steps=3)
        assert found.weights.sum().item() == pytest.approx(1)
        assert found.nodes[-1].item() == pytest.approx(eigenvalues[-1].item(), rel=1e-2)
        means.append((found.nodes * found.weights).sum())
        curvature._random.clear()
        curvature._remainders.clear()
    error = torch.stack(means).std() / len(means) ** 0.5
    assert abs(torch.stack(means).mean() - eigenvalues.mean()) < 4 * error + 1e-9 * eigenvalues[-1]


def test_where_all_eigenvalues_are_known_they_are_the_density() -> None:
    curvature = quadratic([-1.0, 0.5, 2.0, 7.0])
    curvature.top_eigenpairs(count=4, tolerance=1e-9)
    found = curvature.density_beside_eigenvalues(steps=3)
    assert found.nodes.tolist() == pytest.approx([-1.0, 0.5, 2.0, 7.0])
    assert found.weights.tolist() == [0.25] * 4
