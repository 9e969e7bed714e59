from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop

from cockpit_lite import load_run
from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instrument import Reading
from cockpit_lite.instruments.sharpness_limit import SharpnessLimit
from cockpit_lite.probes.step_scale import step_scale
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import Watched, forward
from tests.identity import cockpit
from tests.zoo import ZOO


def value(reading: Any) -> float:
    return float(reading.value if isinstance(reading, Reading) else reading)


def measure(curvature: Curvature, optimizers: Sequence[Optimizer], instrument: SharpnessLimit | None = None) -> dict[str, float]:
    step = Step(0, curvature.parameters)
    step.optimizers = optimizers
    step.observed["curvature"] = curvature
    readings = (SharpnessLimit(max_products=12, tolerance=1e-3) if instrument is None else instrument).measure(step)
    return {name: value(reading) for name, reading in readings.items()}


def quadratic(eigenvalues: Sequence[float]) -> tuple[Curvature, nn.Parameter]:
    diagonal = torch.tensor(eigenvalues, dtype=torch.float64)
    weight = nn.Parameter(torch.ones_like(diagonal))
    return Curvature(0.5 * (diagonal * weight**2).sum(), {"w": weight}, torch.Generator().manual_seed(0)), weight


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1),
    "momentum and decay": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.2),
    "two learning rates": lambda parameters: SGD([{"params": p, "lr": 0.1 * (i + 1)} for i, p in enumerate(parameters)], lr=0.1),
    "adam": lambda parameters: Adam(parameters, lr=0.1),
    "adamw": lambda parameters: AdamW(parameters, lr=0.1),
    "rmsprop": lambda parameters: RMSprop(parameters, lr=0.1, weight_decay=0.2),
}


def dense(watched: Watched, name: str, optimizer: Optimizer) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Return P^-1 (H + decay) and P^-1, both dense, and the gradient."""
    gradient = reference.gradient(ZOO[name], watched.model, watched.batch)
    scale = step_scale([optimizer], dict(watched.model.named_parameters()), gradient)
    flat = {
        key: torch.cat([torch.as_tensor(values.get(n, 0.0)).double().expand(g.shape).flatten() for n, g in gradient.items()])
        for key, values in (("inverse", scale.inverse), ("decay", scale.decay))
    }
    hessian = reference.hessian(ZOO[name], watched.model, watched.batch)
    return torch.diag(flat["inverse"]) @ (hessian + torch.diag(flat["decay"])), flat["inverse"], gradient


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder"])
def test_against_the_dense_preconditioned_hessian(name: str, optimizer: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    made = OPTIMIZERS[optimizer](list(watched.model.parameters()))
    expected, inverse, gradient = dense(watched, name, made)
    found = measure(watched.curvature(), [made], SharpnessLimit(tolerance=1e-6, max_products=60))
    assert found["sharpness"] == pytest.approx(torch.linalg.eigvals(expected).real.max().item(), rel=1e-3)
    assert found["sharpness_ratio"] == pytest.approx(found["sharpness"] / found["sharpness_limit"])
    assert found["max_learning_rate"] == pytest.approx(0.1 / found["sharpness_ratio"])
    if optimizer in ("adam", "adamw", "rmsprop"):
        g = torch.cat([values.flatten() for values in gradient.values()])
        p = inverse * g
        hessian = torch.diag(1 / inverse) @ expected
        assert found["curvature_along_preconditioned_gradient"] == pytest.approx((p @ hessian @ p / (p @ g)).item())
    else:
        assert "curvature_along_preconditioned_gradient" not in found


def test_the_limits_of_gradient_descent() -> None:
    curvature, weight = quadratic([8.0, 1.0, 0.5])
    assert measure(curvature, [SGD([weight], lr=0.1)]) == pytest.approx(
        {"sharpness": 8.0, "sharpness_limit": 20.0, "sharpness_ratio": 0.4, "max_learning_rate": 0.25}, rel=1e-3
    )
    curvature, weight = quadratic([8.0, 1.0, 0.5])
    assert measure(curvature, [SGD([weight], lr=0.1, momentum=0.9)])["max_learning_rate"] == pytest.approx(3.8 / 8, rel=1e-3)


def test_shares_the_products_of_the_largest_eigenvalue() -> None:
    watched = forward(ZOO["mlp"])
    curvature = watched.curvature()
    curvature.top_eigenpairs(tolerance=1e-2)
    before = curvature.products
    measure(curvature, [SGD(watched.model.parameters(), lr=0.1)], SharpnessLimit())
    assert curvature.products == before


def test_adaptive_measurements_begin_where_the_last_one_ended() -> None:
    """Along a real run with Adam: few products, and close to a search that is let run."""
    model = ZOO["mlp"].build()
    optimizer = Adam(model.parameters(), lr=0.003)
    batches = torch.Generator().manual_seed(0)
    instrument, spent, errors = SharpnessLimit(), [], []
    for step in range(60):
        loss = ZOO["mlp"].loss(model, ZOO["mlp"].batch(64, batches))
        if step % 5 == 0:
            curvature = Curvature(loss, dict(model.named_parameters()), torch.Generator().manual_seed(step))
            exact = measure(curvature, [optimizer], SharpnessLimit(tolerance=1e-5, max_products=60))
            before = curvature.products
            found = measure(curvature, [optimizer], instrument)
            spent.append(curvature.products - before)
            errors.append(abs(found["sharpness"] / exact["sharpness"] - 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert max(spent) <= 6
    assert sorted(errors)[len(errors) // 2] < 0.1


def test_a_search_on_the_same_step_says_where_to_begin() -> None:
    """Along a real run with Adam: its subspace is known already, so fewer products lead as close."""
    model = ZOO["mlp"].build()
    optimizer = Adam(model.parameters(), lr=0.003)
    batches = torch.Generator().manual_seed(0)
    spent: dict[bool, list[int]] = {True: [], False: []}
    errors: dict[bool, list[float]] = {True: [], False: []}
    for step in range(40):
        loss = ZOO["mlp"].loss(model, ZOO["mlp"].batch(64, batches))
        for shared in (True, False) if step and step % 5 == 0 else ():
            curvature = Curvature(loss, dict(model.named_parameters()), torch.Generator().manual_seed(step))
            if shared:
                curvature.top_eigenpairs(tolerance=1e-2)
            before = curvature.products
            found = measure(curvature, [optimizer], SharpnessLimit())
            spent[shared].append(curvature.products - before)
            exact = measure(curvature, [optimizer], SharpnessLimit(tolerance=1e-5, max_products=60))
            errors[shared].append(abs(found["sharpness"] / exact["sharpness"] - 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(spent[True]) < sum(spent[False])
    assert sum(errors[True]) < sum(errors[False])


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_after_a_search_it_is_against_the_dense_matrix_too(optimizer: str) -> None:
    watched = forward(ZOO["tied_autoencoder"], torch.float64)
    made = OPTIMIZERS[optimizer](list(watched.model.parameters()))
    expected, _, _ = dense(watched, "tied_autoencoder", made)
    curvature = watched.curvature()
    curvature.top_eigenpairs()
    found = measure(curvature, [made], SharpnessLimit(tolerance=1e-6, max_products=60))
    assert found["sharpness"] == pytest.approx(torch.linalg.eigvals(expected).real.max().item(), rel=1e-3)


def test_a_concave_loss_allows_every_learning_rate() -> None:
    curvature, weight = quadratic([-3.0, -1.0])
    found = measure(curvature, [SGD([weight], lr=0.1)])
    assert found["sharpness"] == pytest.approx(-1.0)
    assert "max_learning_rate" not in found


def test_a_zero_gradient_and_a_linear_loss() -> None:
    weight = nn.Parameter(torch.zeros(30))
    curvature = Curvature((weight**2).sum(), {"w": weight}, torch.Generator())
    found = measure(curvature, [Adam([weight], lr=0.1, eps=1.0)])
    assert found["sharpness"] == pytest.approx(2 / (1 - 0.9))
    assert "curvature_along_preconditioned_gradient" not in found
    weight = nn.Parameter(torch.ones(30))
    assert measure(Curvature(weight.sum(), {"w": weight}, torch.Generator()), [SGD([weight], lr=0.1)])["sharpness"] == 0


def test_one_parameter_and_what_is_not_finite() -> None:
    curvature, weight = quadratic([4.0])
    assert measure(curvature, [Adam([weight], lr=0.1)])["sharpness"] > 0
    curvature, weight = quadratic([float("nan"), 1.0])
    assert (
        measure(curvature, [SGD([weight], lr=0.1)])["sharpness_ratio"] != measure(curvature, [SGD([weight], lr=0.1)])["sharpness"]
    )


def test_an_optimizer_without_a_known_limit_has_a_reason() -> None:
    curvature, weight = quadratic([4.0, 1.0])
    with pytest.raises(NotMeasured, match="no stability limit is known for the optimizer LBFGS"):
        measure(curvature, [LBFGS([weight])])


def test_in_a_real_loop(tmp_path: Path) -> None:
    """Full-batch Adam: the ratio says on which side of the limit the run is."""
    model = nn.Linear(3, 1, dtype=torch.float64)
    optimizer = Adam(model.parameters(), lr=0.01)
    x = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[SharpnessLimit()], budget=None):
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) - 1).square().mean().backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    limits = run.series("sharpness_limit")[1]
    assert limits.tolist() == pytest.approx([3800.0] * 5)
    assert (run.series("sharpness")[1] / limits).tolist() == pytest.approx(run.series("sharpness_ratio")[1].tolist(), rel=1e-4)
    assert run.how("sharpness")[0]["kind"] == "estimated"


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"max_products": 1}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError):
        SharpnessLimit(**options)
