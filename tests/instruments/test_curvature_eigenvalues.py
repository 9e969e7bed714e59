"""The instruments that share one search for eigenvalues and the random products: both ends, top directions, blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature
from cockpit_lite.curvature.memory import CurvatureMemory
from cockpit_lite.curvature.trace import RandomProducts, beside
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import Instrument, Reading
from cockpit_lite.instruments.eigenvector_overlap import EigenvectorOverlap, share_in_subspace, subspace_overlap
from cockpit_lite.instruments.layerwise_curvature import LayerwiseCurvature, block_traces
from cockpit_lite.instruments.min_eigenvalue import MinEigenvalue
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO

NETS = ["linear_regression", "tied_autoencoder", "rnn", "bare_parameters"]


def measure(curvature: Curvature, instrument: Instrument) -> dict[str, Reading]:
    step = Step(0, curvature.parameters)
    step.observed["curvature"] = curvature
    readings = instrument.measure(step)
    assert all(isinstance(reading, Reading) and reading.kind == "estimated" for reading in readings.values())
    return dict(readings)  # type: ignore[arg-type]


def quadratic(eigenvalues: list[float], memory: CurvatureMemory | None = None) -> Curvature:
    diagonal = torch.tensor(eigenvalues, dtype=torch.float64)
    weight = nn.Parameter(torch.ones_like(diagonal))
    loss = 0.5 * (diagonal * weight**2).sum()
    return Curvature(loss, {"w": weight}, torch.Generator().manual_seed(0), memory=memory)


# Both ends of the spectrum


@pytest.mark.parametrize("name", NETS)
def test_the_smallest_against_the_dense_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    eigenvalues = torch.linalg.eigvalsh(reference.hessian(ZOO[name], watched.model, watched.batch))
    readings = measure(watched.curvature(), MinEigenvalue(tolerance=1e-3, max_products=60))
    size = eigenvalues.abs().max().item()
    assert readings["min_eigenvalue"].value == pytest.approx(eigenvalues[0].item(), abs=1e-2 * size)
    largest = eigenvalues[eigenvalues.abs().argmax()].item()
    assert readings["max_magnitude_eigenvalue"].value == pytest.approx(largest, rel=1e-2)
    assert (eigenvalues - readings["min_eigenvalue"].value).abs().min().item() <= float(readings["min_eigenvalue"].residual or 0)


def test_the_largest_magnitude_may_be_negative() -> None:
    readings = measure(quadratic([-100.0, 2.0] + [0.1] * 20), MinEigenvalue())
    assert readings["min_eigenvalue"].value == pytest.approx(-100, rel=1e-3)
    assert readings["max_magnitude_eigenvalue"].value == pytest.approx(-100, rel=1e-3)
    readings = measure(quadratic([-2.0, 100.0] + [0.1] * 20), MinEigenvalue(tolerance=1e-3))
    assert readings["min_eigenvalue"].value == pytest.approx(-2, rel=1e-2)
    assert readings["max_magnitude_eigenvalue"].value == pytest.approx(100, rel=1e-3)


def test_the_smallest_magnitude_is_there_where_everything_was_seen() -> None:
    readings = measure(quadratic([-3.0, 0.5, 2.0]), MinEigenvalue(tolerance=1e-9))
    assert readings["min_magnitude_eigenvalue"].value == pytest.approx(0.5)
    assert "min_magnitude_eigenvalue" not in measure(quadratic([float(i) for i in range(40)]), MinEigenvalue())


def test_the_ends_of_nothing() -> None:
    weight = nn.Parameter(torch.ones(20))
    linear = Curvature(weight.sum(), {"w": weight}, torch.Generator())
    assert measure(linear, MinEigenvalue())["min_eigenvalue"].value == 0
    assert measure(quadratic([4.0]), MinEigenvalue())["min_eigenvalue"].value == pytest.approx(4)
    value = float(measure(quadratic([float("nan"), 1.0]), MinEigenvalue())["min_eigenvalue"].value)
    assert value != value


def test_both_ends_and_the_top_directions_share_their_products() -> None:
    curvature = forward(ZOO["mlp"]).curvature()
    measure(curvature, EigenvectorOverlap())
    spent = curvature.products
    assert spent <= 8
    measure(curvature, EigenvectorOverlap())
    measure(curvature, MinEigenvalue())
    assert curvature.products <= 8


# Top directions


def test_overlap_of_known_subspaces() -> None:
    basis = torch.eye(5, dtype=torch.float64)
    assert subspace_overlap(basis[:2], basis[[1, 0]]).item() == 1
    assert subspace_overlap(basis[:2], basis[[1, 2]]).item() == 0.5
    assert subspace_overlap(basis[:2], basis[3:]).item() == 0
    assert share_in_subspace(torch.tensor([3.0, 4.0, 0, 0, 0], dtype=torch.float64), basis[:1]).item() == pytest.approx(0.36)


# Every eigenvalue of the linear regression is there twice, once for each output, and a search may find it once.
@pytest.mark.parametrize("name", [name for name in NETS if name != "linear_regression"])
def test_top_directions_against_the_dense_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    values, vectors = torch.linalg.eigh(reference.hessian(ZOO[name], watched.model, watched.batch))
    g = torch.cat([v.flatten() for v in reference.gradient(ZOO[name], watched.model, watched.batch).values()])
    readings = measure(watched.curvature(), EigenvectorOverlap(2, tolerance=1e-7, max_products=60))
    found = readings["top_eigenvalues"].value
    assert isinstance(found, Tensor)
    assert found.tolist() == pytest.approx(values.flip(0)[:2].tolist(), rel=1e-2)
    share = (vectors[:, -2:].T @ g).square().sum() / g.square().sum()
    assert float(readings["gradient_in_top_subspace"].value) == pytest.approx(share.item(), abs=0.02)
    assert "eigenvector_overlap" not in readings  # nothing to compare with


def test_the_overlap_with_the_last_measurement() -> None:
    memory = CurvatureMemory()
    spread = [0.1 + 0.01 * index for index in range(30)]
    accurate = EigenvectorOverlap(2, tolerance=1e-6, max_products=40)
    measure(quadratic([*spread, 9.0, 5.0], memory), accurate)
    same = measure(quadratic([*spread, 9.0, 5.0], memory), accurate)
    assert float(same["eigenvector_overlap"].value) == pytest.approx(1, abs=1e-3)
    swapped = measure(quadratic([*spread, 5.0, 9.0], memory), accurate)
    assert float(swapped["eigenvector_overlap"].value) == pytest.approx(1, abs=1e-3)
    other = measure(quadratic([7.0, *spread[1:], 9.0, 0.1], memory), accurate)
    assert float(other["eigenvector_overlap"].value) == pytest.approx(0.5, abs=1e-3)


def test_fewer_weights_than_directions() -> None:
    readings = measure(quadratic([4.0, 2.0]), EigenvectorOverlap(3))
    values = readings["top_eigenvalues"].value
    assert isinstance(values, Tensor)
    assert values[:2].tolist() == pytest.approx([4, 2])
    assert values[2].isnan()


def test_a_gradient_of_zero_lies_in_no_subspace() -> None:
    weight = nn.Parameter(torch.zeros(30))
    curvature = Curvature((weight**2).sum(), {"w": weight}, torch.Generator())
    assert "gradient_in_top_subspace" not in measure(curvature, EigenvectorOverlap(1))


# Blocks


@pytest.mark.parametrize("known", [0, 4])
def test_the_blocks_against_the_dense_matrix(known: int) -> None:
    """Unbiased, and with a standard error that is about right: over many samples, from a matrix with outliers."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(40, 40, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, 40, dtype=torch.float64)
    matrix = factor @ factor.T
    basis = torch.linalg.eigh(matrix)[1].T[-known:] if known else matrix[:0]
    sizes = {"a": 10, "b": 25, "c": 5}
    count = 20_000
    signs = torch.randint(0, 2, (count, 40), generator=generator).double() * 2 - 1
    found = block_traces(beside(RandomProducts(signs, signs @ matrix), basis, basis @ matrix), sizes, basis, basis @ matrix)
    start = 0
    for name, size in sizes.items():
        expected = matrix.diagonal()[start : start + size].sum().item()
        value, error = (part.item() for part in found[name])
        assert abs(value - expected) < 4 * error
        single = [
            block_traces(beside(RandomProducts(one, one @ matrix), basis, basis @ matrix), sizes, basis, basis @ matrix)[name][0]
            for one in signs[:400].split(1)
        ]
        deviation = torch.stack(single).std().item()
        assert 0.9 * deviation < error * count**0.5 < 2 * deviation
        start += size


def test_the_blocks_add_up_to_the_trace_and_cost_nothing() -> None:
    curvature = forward(ZOO["mlp"], torch.float64).curvature()
    curvature.top_eigenpairs()
    trace = curvature.trace(2)
    spent = curvature.products
    readings = measure(curvature, LayerwiseCurvature())
    assert curvature.products == spent
    assert set(readings) == {f"layerwise_curvature/{name}" for name in curvature.parameters}
    total = sum(float(reading.value) for reading in readings.values())
    # The trace is projected on both sides, the blocks on one: the same expectation, another sample.
    assert total == pytest.approx(float(trace.value), abs=4 * float(trace.standard_error or 0))


@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder"])
def test_the_largest_eigenvalue_of_each_block(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    hessian = reference.hessian(ZOO[name], watched.model, watched.batch)
    readings = measure(watched.curvature(), LayerwiseCurvature(eigenvalues=30))
    start = 0
    for key, parameter in reference.trainable(watched.model).items():
        block = hessian[start : start + parameter.numel(), start : start + parameter.numel()]
        expected = torch.linalg.eigvalsh(block)[-1].item()
        assert readings[f"layerwise_max_eigenvalue/{key}"].value == pytest.approx(expected, rel=2e-2, abs=1e-9)
        start += parameter.numel()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (MinEigenvalue, {"tolerance": 0.0}),
        (MinEigenvalue, {"max_products": 1}),
        (EigenvectorOverlap, {"count": 0}),
        (EigenvectorOverlap, {"tolerance": 0.0}),
        (EigenvectorOverlap, {"count": 5, "max_products": 5}),
        (LayerwiseCurvature, {"samples": 0}),
        (LayerwiseCurvature, {"eigenvalues": 1}),
    ],
)
def test_options_that_make_no_sense_are_refused(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises(SetupError):
        make(**options)
