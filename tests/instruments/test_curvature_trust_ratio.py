"""Trust ratio and curvature noise: what is measured of the step once it was taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer, RMSprop

from cockpit_lite import load_run
from cockpit_lite.instruments.trust_ratio import TrustRatio, step_quality
from cockpit_lite.run import Run
from tests import reference
from tests.identity import cockpit
from tests.zoo import ZOO, Architecture

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.05),
    "momentum": lambda model: SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1),
    "adam": lambda model: Adam(model.parameters(), lr=0.01),
    "adamw": lambda model: AdamW(model.parameters(), lr=0.01, weight_decay=0.3),
    "rmsprop": lambda model: RMSprop(model.parameters(), lr=0.01, momentum=0.5),
}
NAMES = TrustRatio.readings


def train(
    architecture: Architecture, folder: Path, optimizer: Callable[[nn.Module], Optimizer], steps: int = 3
) -> tuple[Run, list[dict[str, float]]]:
    """Train in double precision; return the run, and what the dense reference says of every step."""
    model = architecture.build(dtype=torch.float64)
    opt = optimizer(model)
    batches = torch.Generator().manual_seed(4)
    expected = []
    with cockpit(model, opt, run=folder, instruments=[TrustRatio()], schedule=lambda step: True, budget=None):
        for step in range(steps):
            batch = architecture.batch(6, batches, torch.float64)
            before = copy.deepcopy(model)
            opt.zero_grad()
            torch.manual_seed(step)
            architecture.loss(model, batch).backward()
            opt.step()
            expected.append(dense(architecture, before, model, batch, step))
    return load_run(folder), expected


def dense(architecture: Architecture, before: nn.Module, after: nn.Module, batch: object, seed: int) -> dict[str, float]:
    old, new = reference.trainable(before), reference.trainable(after)
    d = torch.cat([(new[name] - old[name]).detach().flatten() for name in old])
    torch.manual_seed(seed)
    by_parameter = reference.gradient(architecture, before, batch)  # type: ignore[arg-type]
    slope = (torch.cat([values.flatten() for values in by_parameter.values()]) @ d).item()
    torch.manual_seed(seed)
    curvature = (d @ reference.hessian(architecture, before, batch) @ d).item()  # type: ignore[arg-type]
    losses = []
    for model in (before, after):
        torch.manual_seed(seed)
        losses.append(architecture.loss(model, batch).item())  # type: ignore[arg-type]
    actual, predicted = losses[0] - losses[1], -slope - curvature / 2
    return {
        "trust_ratio": actual / predicted,
        "actual_decrease": actual,
        "predicted_decrease": predicted,
        "update_gradient_term": -slope,
        "update_curvature_term": curvature / 2,
        "curvature_along_update": curvature / (d @ d).item(),
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["linear_regression", "tied_autoencoder", "frozen_and_unused"])
def test_the_real_step_against_the_dense_hessian(name: str, optimizer: str, tmp_path: Path) -> None:
    run, expected = train(ZOO[name], tmp_path / "run", OPTIMIZERS[optimizer])
    for reading in NAMES:
        values = run.series(reading)[1]
        assert values.tolist() == pytest.approx([step[reading] for step in expected], rel=1e-6, abs=1e-12), reading


def test_a_quadratic_keeps_its_promise(tmp_path: Path) -> None:
    run, _ = train(ZOO["linear_regression"], tmp_path / "run", OPTIMIZERS["momentum"], steps=5)
    assert run.series("trust_ratio")[1].tolist() == pytest.approx([1.0] * 5, rel=1e-9)


def test_clipping_is_part_of_the_step(tmp_path: Path) -> None:
    model = nn.Linear(3, 1, dtype=torch.float64)
    before = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    x = torch.arange(12.0, dtype=torch.float64).reshape(4, 3)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TrustRatio()], budget=None):
        model(x).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    run = load_run(tmp_path / "run")
    with torch.no_grad():
        actual = (before(x).square().mean() - model(x).square().mean()).item()
    assert run.series("actual_decrease")[1].tolist() == pytest.approx([actual])
    assert run.series("trust_ratio")[1].tolist() == pytest.approx([1.0])


def test_small_differences_survive_single_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(10_000, generator=generator) / 10_000
    after = before * (1 - 2.0**-12)  # exact
    quality = step_quality(torch.tensor(-1.0), torch.tensor(0.0), [before], [after])
    expected = (before.double() - after.double()).sum().item()
    assert quality.actual_decrease.item() == pytest.approx(expected, rel=1e-6)


def reason(folder: Path) -> str:
    run = load_run(folder)
    assert "trust_ratio" not in run.names
    return run.not_measured["trust_ratio"]


def test_a_step_that_does_not_move_has_a_reason(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.0)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TrustRatio()], budget=None):
        model(torch.ones(3, 2)).square().mean().backward()
        optimizer.step()
    assert reason(tmp_path / "run") == "the step did not move the weights"


def test_accumulation_has_a_reason(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TrustRatio()], budget=None):
        for _ in range(2):
            for _ in range(2):
                model(torch.ones(3, 2)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert "2 backward passes" in reason(tmp_path / "run")


def test_parameters_outside_of_the_model_have_a_reason(tmp_path: Path) -> None:
    model, scale = nn.Linear(2, 1), nn.Parameter(torch.ones(1))
    optimizer = SGD([*model.parameters(), scale], lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TrustRatio()], budget=None):
        (model(torch.ones(3, 2)).square().mean() + scale.square().sum()).backward()
        optimizer.step()
    assert reason(tmp_path / "run")


def test_an_unknown_loss_has_a_reason(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TrustRatio()], budget=None):
        model(torch.ones(3, 2)).square().mean().sqrt().backward()
        optimizer.step()
    assert reason(tmp_path / "run")


def test_an_optimizer_with_a_line_search(tmp_path: Path) -> None:
    """Its step begins where it evaluates its closure first."""
    model = nn.Linear(2, 1, dtype=torch.float64)
    optimizer = LBFGS(model.parameters(), lr=0.1, max_iter=3)
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]], dtype=torch.float64)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        return loss

    before = copy.deepcopy(model)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[TrustRatio()], budget=None):
        optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        actual = ((before(x) - 1).square().mean() - (model(x) - 1).square().mean()).item()
    run = load_run(tmp_path / "run")
    assert run.series("actual_decrease")[1].tolist() == pytest.approx([actual])
    assert run.series("trust_ratio")[1].tolist() == pytest.approx([1.0])
