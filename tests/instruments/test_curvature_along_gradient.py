from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.instruments.curvature_along_gradient import CurvatureAlongGradient
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import forward
from tests.zoo import ZOO


def measure(curvature: Curvature, rates: dict[str, float]) -> dict[str, float]:
    step = Step(0, curvature.parameters)
    step.parameter_learning_rates = rates
    step.observed["curvature"] = curvature
    instrument = CurvatureAlongGradient()
    instrument.prepare(step)
    readings = instrument.measure(step)
    assert all(isinstance(reading, Reading) and reading.kind == "exact" for reading in readings.values())
    return {name: float(reading.value) for name, reading in readings.items() if isinstance(reading, Reading)}


@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "frozen_and_unused", "rnn"])
def test_against_the_dense_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    H = reference.hessian(ZOO[name], watched.model, watched.batch)
    by_parameter = reference.gradient(ZOO[name], watched.model, watched.batch)
    g = torch.cat([values.flatten() for values in by_parameter.values()])
    curvature = watched.curvature()
    readings = measure(curvature, dict.fromkeys(curvature.parameters, 0.3))
    assert readings["curvature_along_gradient"] == pytest.approx((g @ H @ g / (g @ g)).item())
    assert readings["taylor_gradient_term"] == pytest.approx(0.3 * (g @ g).item())
    assert readings["taylor_curvature_term"] == pytest.approx(0.5 * 0.3**2 * (g @ H @ g).item())
    assert curvature.products == 1


def test_each_parameter_moves_with_its_own_learning_rate() -> None:
    watched = forward(ZOO["linear_regression"], torch.float64)
    H = reference.hessian(ZOO["linear_regression"], watched.model, watched.batch)
    by_parameter = reference.gradient(ZOO["linear_regression"], watched.model, watched.batch)
    names = list(by_parameter)
    rates = {name: 0.1 * (index + 1) for index, name in enumerate(names[:-1])}  # the last is in no optimizer
    g = torch.cat([values.flatten() for values in by_parameter.values()])
    move = torch.cat([rates.get(name, 0.0) * values.flatten() for name, values in by_parameter.items()])
    readings = measure(watched.curvature(), rates)
    assert readings["curvature_along_gradient"] == pytest.approx((g @ H @ g / (g @ g)).item())
    assert readings["taylor_gradient_term"] == pytest.approx((g @ move).item())
    assert readings["taylor_curvature_term"] == pytest.approx(0.5 * (move @ H @ move).item())


def test_the_terms_are_the_change_of_a_quadratic_loss() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def loss(w: Tensor) -> Tensor:
        return 3 * w[0] ** 2 + w[0] * w[1] + 5 * w[1] ** 2

    readings = measure(Curvature(loss(weight), {"weight": weight}, torch.Generator()), {"weight": 0.05})
    (gradient,) = torch.autograd.grad(loss(weight), weight)
    change = loss(weight - 0.05 * gradient) - loss(weight)
    assert readings["taylor_curvature_term"] - readings["taylor_gradient_term"] == pytest.approx(change.item())


def test_a_gradient_of_zero_has_a_reason() -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(NotMeasured, match="the gradient is zero"):
        measure(Curvature((weight**2).sum(), {"weight": weight}, torch.Generator()), {"weight": 0.1})


def test_without_a_learning_rate_there_is_no_step_to_describe() -> None:
    weight = nn.Parameter(torch.ones(3))
    readings = measure(Curvature((weight**2).sum(), {"weight": weight}, torch.Generator()), {})
    assert readings == {"curvature_along_gradient": 2.0}


def test_what_is_not_finite_is_shown() -> None:
    weight = nn.Parameter(torch.ones(3))
    readings = measure(Curvature((weight**2).sum() * torch.inf, {"weight": weight}, torch.Generator()), {"weight": 0.1})
    assert readings["taylor_gradient_term"] == torch.inf
    assert readings["curvature_along_gradient"] != readings["curvature_along_gradient"]


def test_a_linear_loss_is_not_curved() -> None:
    weight = nn.Parameter(torch.ones(3))
    readings = measure(Curvature(weight.sum(), {"weight": weight}, torch.Generator()), {"weight": 0.1})
    assert readings["curvature_along_gradient"] == 0
    assert readings["taylor_curvature_term"] == 0
    assert readings["taylor_gradient_term"] == pytest.approx(0.3)
