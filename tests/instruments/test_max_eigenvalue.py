from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import Reading
from cockpit_lite.instruments.max_eigenvalue import MaxEigenvalue
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO


def measure(curvature: Curvature, instrument: MaxEigenvalue) -> Reading:
    step = Step(0, curvature.parameters)
    step.observed["curvature"] = curvature
    reading = instrument.measure(step)["max_eigenvalue"]
    assert isinstance(reading, Reading)
    assert reading.kind == "estimated"
    return reading


def quadratic(eigenvalues: list[float]) -> Curvature:
    diagonal = torch.tensor(eigenvalues, dtype=torch.float64)
    weight = nn.Parameter(torch.ones_like(diagonal))
    return Curvature(0.5 * (diagonal * weight**2).sum(), {"weight": weight}, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "rnn", "bare_parameters"])
def test_against_the_dense_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    expected = torch.linalg.eigvalsh(reference.hessian(ZOO[name], watched.model, watched.batch))[-1].item()
    reading = measure(watched.curvature(), MaxEigenvalue())
    assert reading.value == pytest.approx(expected, rel=0.01)
    assert reading.residual is not None
    assert reading.residual <= 0.1 * expected


def test_is_the_largest_and_not_the_largest_in_magnitude() -> None:
    assert measure(quadratic([-100.0, 2.0] + [0.1] * 20), MaxEigenvalue()).value == pytest.approx(2, rel=1e-3)


def test_warm_starts_save_products_along_a_training() -> None:
    """Median products and errors over a real run: see the docstring of the instrument for the default's precision."""
    model = ZOO["mlp"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = torch.Generator().manual_seed(0)
    warm, errors, spent, spent_cold = MaxEigenvalue(), [], [], []
    for step in range(100):
        loss = ZOO["mlp"].loss(model, ZOO["mlp"].batch(64, batches))
        if step % 10 == 0:
            curvature = Curvature(loss, dict(model.named_parameters()), torch.Generator().manual_seed(step))
            exact = measure(curvature, MaxEigenvalue(tolerance=1e-4, max_products=40))
            before = curvature.products
            reading = measure(curvature, warm)
            spent.append(curvature.products - before)
            measure(curvature, MaxEigenvalue())
            spent_cold.append(curvature.products - before - spent[-1])
            errors.append(abs(float(reading.value) / float(exact.value) - 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(spent) <= 12
    assert sum(spent[1:]) <= sum(spent_cold[1:])
    assert sorted(errors)[len(errors) // 2] < 0.01


def test_starts_anew_for_another_model_and_after_what_is_not_finite() -> None:
    instrument = MaxEigenvalue()
    assert measure(quadratic([3.0, 1.0]), instrument).value == pytest.approx(3, rel=1e-2)
    assert measure(quadratic([1.0, 2.0, 5.0]), instrument).value == pytest.approx(5, rel=1e-2)
    assert math.isnan(float(measure(quadratic([math.nan, 1.0, 1.0]), instrument).value))
    assert measure(quadratic([1.0, 2.0, 6.0]), instrument).value == pytest.approx(6, rel=1e-2)


def test_a_gradient_of_zero_is_no_obstacle() -> None:
    weight = nn.Parameter(torch.zeros(30))
    curvature = Curvature((weight**2).sum(), {"weight": weight}, torch.Generator())
    assert measure(curvature, MaxEigenvalue()).value == pytest.approx(2)


def test_one_parameter_and_a_linear_loss() -> None:
    assert measure(quadratic([4.0]), MaxEigenvalue()).value == pytest.approx(4)
    weight = nn.Parameter(torch.ones(20))
    reading = measure(Curvature(weight.sum(), {"weight": weight}, torch.Generator()), MaxEigenvalue())
    assert (reading.value, reading.residual) == (0, 0)


def test_little_memory_means_fewer_vectors_and_still_an_answer() -> None:
    curvature = quadratic([10.0, 5.0] + [1.0] * 98)
    reading = measure(curvature, MaxEigenvalue(memory=3 * 100 * 8))
    assert reading.value == pytest.approx(10, rel=0.01)


def test_says_when_it_did_not_converge() -> None:
    curvature = quadratic([1 + 0.5 * index / 100 for index in range(100)])
    reading = measure(curvature, MaxEigenvalue(tolerance=1e-6, max_products=4))
    assert reading.note == "not converged: a lower bound"
    assert float(reading.value) < 1.5


def test_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    measure(quadratic([4.0, 1.0]), MaxEigenvalue())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"max_products": 1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SetupError):
        MaxEigenvalue(**options)  # type: ignore[arg-type]
