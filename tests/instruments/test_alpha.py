"""Alpha against quadratics whose answer is known, and against explicit per-sample gradients along a real training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from cockpit_lite import Every, load_run
from cockpit_lite.instruments import Alpha, GradientNorm
from cockpit_lite.instruments.alpha import alpha
from cockpit_lite.run import Run
from tests import reference
from tests.identity import cockpit
from tests.zoo import ZOO

N = 8


class Bowl(nn.Module):
    """A quadratic loss: every sample sees the same."""

    def __init__(self) -> None:
        super().__init__()
        self.curvature = torch.tensor([1.0, 1.0, 1.0])
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ (self.curvature * self.weight.square()) / 2


def run_bowl(folder: Path, make: Callable[[Any], Optimizer], steps: int = 4, **options: Any) -> Run:
    model = Bowl()
    optimizer = make(model.parameters())
    inputs = torch.ones(N, 3)
    with cockpit(model, optimizer, run=folder, **{"instruments": [Alpha()], "schedule": Every(1), "budget": None, **options}):
        for _ in range(steps):
            optimizer.zero_grad()
            model(inputs).mean().backward()
            optimizer.step()
    return load_run(folder)


@pytest.mark.parametrize(
    ("learning_rate", "expected"), [(0.0, -1.0), (0.5, -0.5), (1.0, 0.0), (2.0, 1.0), (3.0, 2.0)], ids=lambda value: str(value)
)
def test_on_a_bowl(learning_rate: float, expected: float, tmp_path: Path) -> None:
    """With curvature 1 the step of learning rate 1 goes to the minimum, and one of 2 to the other side."""
    run = run_bowl(tmp_path / "run", lambda parameters: SGD(parameters, lr=learning_rate), steps=2)
    steps, values = run.series("alpha")
    assert steps.tolist() == [1]
    assert values.tolist() == pytest.approx([expected], abs=1e-6)


def test_concave_is_no_curvature_and_nan_stays_nan() -> None:
    assert alpha(torch.tensor(-1.0), torch.tensor(-2.0)) == -1
    assert alpha(torch.tensor(0.0), torch.tensor(0.0)) == -1
    assert math.isnan(alpha(torch.tensor(-1.0), torch.tensor(torch.nan)).item())


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mlp", lambda parameters: SGD(parameters, lr=0.05, momentum=0.9)),
        ("mlp", lambda parameters: AdamW(parameters, lr=0.01)),
        ("deep_linear", lambda parameters: SGD(parameters, lr=0.1)),
        ("residual_mlp", lambda parameters: AdamW(parameters, lr=0.01)),
        ("class_weighted", lambda parameters: SGD(parameters, lr=0.05)),
        ("lstm_bidirectional", lambda parameters: AdamW(parameters, lr=0.01)),
    ],
)
def test_against_per_sample_gradients(name: str, make: Callable[[Any], Optimizer], tmp_path: Path) -> None:
    """The slopes, and the standard error, from the matrices of all samples' gradients at both ends of every step."""
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64).eval()
    optimizer, batches = make(model.parameters()), torch.Generator().manual_seed(0)
    expected, errors, last = [], [], None
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(6):
            batch = architecture.batch(N, batches, torch.float64)
            contributions = reference.contributions(architecture, model, batch)
            before = {name: value.detach().clone() for name, value in reference.trainable(model).items()}
            optimizer.zero_grad()
            architecture.loss(model, batch).backward()
            optimizer.step()
            if last is not None:
                update, start = last
                along = N * reference.matrix(contributions) @ update
                end, variance = along.mean().item(), along.var().item() / N
                expected.append(end / abs(start) if end > start else -1.0)
                errors.append(math.sqrt(variance / start**2 + end**2 * variance / start**4))
            update = torch.cat([(value - before[name]).flatten() for name, value in reference.trainable(model).items()]).detach()
            last = update, (N * reference.matrix(contributions) @ update).mean().item()
    run = load_run(tmp_path / "run")
    steps, values = run.series("alpha")
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert values.tolist() == pytest.approx(expected, rel=1e-7)
    how = run.how("alpha")
    assert [how[step]["standard_error"] for step in steps] == pytest.approx(errors, rel=1e-6)
    assert all(how[step]["kind"] == "estimated" for step in steps)


@pytest.mark.parametrize("name", ["mlp", "deep_linear", "bilinear", "class_weighted"])
def test_the_losses_at_both_ends_hardly_matter(name: str) -> None:
    """The most likely quadratic through losses and slopes, with all variances known, is within the noise of that without."""
    architecture = ZOO[name]
    model, batches = architecture.build(dtype=torch.float64).eval(), torch.Generator().manual_seed(0)
    optimizer, differences, last = SGD(model.parameters(), lr=0.02), [], None
    for _ in range(12):
        batch = architecture.batch(16, batches, torch.float64)
        rows = 16 * reference.matrix(reference.contributions(architecture, model, batch))
        losses = torch.stack([architecture.loss(model, sample).detach() for sample in architecture.samples(batch)])
        losses = losses * architecture.weights(batch) * 16
        if last is not None:
            update, losses_before, rows_before = last
            slopes = (rows_before @ update, rows @ update)
            observed = torch.stack([values.mean() for values in (losses_before, slopes[0], losses, slopes[1])])
            variances = torch.stack([values.var() / 16 for values in (losses_before, slopes[0], losses, slopes[1])])
            design = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 1, 2]], dtype=torch.float64) / variances.sqrt()[:, None]
            _, start, bend = torch.linalg.lstsq(design, observed / variances.sqrt()).solution
            with_losses = (start + 2 * bend) / start.abs() if bend > 0 else torch.tensor(-1.0)
            error = (variances[3] + (observed[3] / observed[1]) ** 2 * variances[1]).sqrt() / observed[1].abs()
            differences.append(((with_losses - alpha(observed[1], observed[3])).abs() / error).item())
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer.zero_grad()
        architecture.loss(model, batch).backward()
        optimizer.step()
        last = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before, losses, rows
    assert max(differences) < 0.2


def test_the_second_step_of_a_pair_is_measured_too(tmp_path: Path) -> None:
    run = run_bowl(tmp_path / "run", lambda p: SGD(p, lr=0.5), steps=12, instruments=[Alpha(), GradientNorm()], schedule=Every(5))
    assert run.series("alpha")[0].tolist() == [1, 6, 11]
    assert run.series("grad_norm")[0].tolist() == [0, 5, 10]


def test_a_closure(tmp_path: Path) -> None:
    """LBFGS evaluates many times and overwrites the gradient; the step is described from its first evaluation."""
    model = Bowl()
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=3)
    inputs = torch.ones(N, 3)

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = model(inputs).mean()
        loss.backward()
        return loss

    weights = []
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            weights.append(model.weight.detach().clone())
            optimizer.step(closure)
    update = weights[1] - weights[0]
    expected = alpha(update @ weights[0], update @ weights[1])  # the gradient of this bowl is the weight itself
    assert load_run(tmp_path / "run").series("alpha")[1].tolist() == pytest.approx([expected.item()], rel=1e-5)


def test_weights_changed_between_two_steps(tmp_path: Path) -> None:
    model = Bowl()
    optimizer = SGD(model.parameters(), lr=0.5)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            model(torch.ones(N, 3)).mean().backward()
            optimizer.step()
            with torch.no_grad():
                model.weight.mul_(0.9)
    run = load_run(tmp_path / "run")
    assert "alpha" not in run.names
    assert "changed between" in run.not_measured["alpha"]


def test_samples_that_cannot_be_told_apart_cost_the_error_only(tmp_path: Path) -> None:
    architecture = ZOO["graph_of_samples"]
    model, batches = architecture.build(), torch.Generator().manual_seed(0)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(3):
            optimizer.zero_grad()
            architecture.loss(model, architecture.batch(N, batches)).backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    assert run.series("alpha")[0].tolist() == [1, 2]
    assert "standard_error" not in run.how("alpha")[1]


def test_complex_weights(tmp_path: Path) -> None:
    """The loss |w|^2 has its minimum along the step where both parts have it."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.cfloat)
    optimizer = SGD(model.parameters(), lr=0.25)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[Alpha()], schedule=Every(1), budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(N, 1, dtype=torch.cfloat)).abs().square().mean().backward()
            optimizer.step()
    assert load_run(tmp_path / "run").series("alpha")[1].tolist() == pytest.approx([-0.5], abs=1e-6)


def test_the_first_step_alone_has_a_reason(tmp_path: Path) -> None:
    run = run_bowl(tmp_path / "run", lambda p: SGD(p, lr=0.5), steps=1)
    assert "step before" in run.not_measured["alpha"]
