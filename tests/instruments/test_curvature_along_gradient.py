from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite import Every, load_run
from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.instruments.curvature_along_gradient import CurvatureAlongGradient
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import forward
from tests.identity import cockpit
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


def scaled(loss: Tensor) -> Tensor:
    return 128.0 * loss


def train(folder: Path, by_the_graph: bool, **how: Any) -> tuple[dict[str, list[float]], dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)).double()
    groups = [{"params": model[0].parameters(), "lr": 0.05}, {"params": model[3].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups if how.get("rates") else model.parameters(), lr=0.1)
    if hook := how.get("hook"):
        model[0].register_forward_hook(hook)
    instrument = CurvatureAlongGradient()
    instrument._by_the_graph = by_the_graph
    draws = torch.Generator().manual_seed(0)
    with cockpit(model, optimizer, run=folder, instruments=[instrument], schedule=Every(1), budget=None):
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(how.get("micro_batches", 1)):
                inputs = torch.randn(12, 4, generator=draws, dtype=torch.float64)
                loss_of: Callable[[Tensor], Tensor] = how.get("loss", lambda loss: loss)
                loss_of(F.cross_entropy(model(inputs), torch.arange(12) % 3)).backward()
            if how.get("clip"):
                nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    run = load_run(folder)
    series = {name: run.series(name) for name in instrument.readings}
    return {name: values.tolist() for name, (_, values) in series.items()}, {
        "steps": {name: steps.tolist() for name, (steps, _) in series.items()},
        "notes": run.how(instrument.name),
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
    }


@pytest.mark.parametrize(
    "how",
    [{}, {"rates": True}, {"clip": True}, {"loss": scaled}, {"micro_batches": 2}],
    ids=["plain", "two learning rates", "clipped", "own weighting", "accumulation"],
)
def test_behind_the_backward_pass_it_is_the_same(how: dict[str, Any], tmp_path: Path) -> None:
    behind, facts = train(tmp_path / "behind", False, **how)
    before, known = train(tmp_path / "before", True, **how)
    assert all(torch.equal(mine, other) for mine, other in zip(facts["weights"], known["weights"], strict=True))
    for name, values in behind.items():
        assert len(values) >= 2 or how.get("micro_batches")
        expected = dict(zip(known["steps"][name], before[name], strict=True))
        assert values == pytest.approx([expected[step] for step in facts["steps"][name]])
    if not how:
        assert all(entry["note"] == "by a second forward pass" for entry in facts["notes"].values())


def test_a_forward_that_cannot_be_repeated_is_measured_on_the_graph_from_the_second_step_on(tmp_path: Path) -> None:
    _, facts = train(tmp_path / "run", False, hook=lambda module, args, output: None)
    assert facts["steps"]["curvature_along_gradient"] == [1, 2]
