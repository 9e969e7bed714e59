"""The hardest samples against a loop over single samples, and what is said where something is not known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import Every, load_run
from cockpit_lite.instruments import HardestSamples
from cockpit_lite.run import Run
from tests.identity import cockpit
from tests.instruments.samples import gradients, step_with

INPUTS = torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(12) % 3
Loss = Callable[[nn.Module, Tensor], Tensor]


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def run_of(folder: Path, loss: Loss, inputs: Tensor = INPUTS, model: nn.Module | None = None) -> Run:
    model = net() if model is None else model
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=folder, instruments=[HardestSamples()], schedule=Every(1), budget=None):
        loss(model, model(inputs)).backward()
        optimizer.step()
    return load_run(folder)


def table(run: Run, name: str) -> list[list[float]]:
    return run.series(name)[1][0].tolist()


def test_against_single_samples(tmp_path: Path) -> None:
    model, losses, norms = net(), [], []
    for sample, label in zip(INPUTS.split(1), LABELS.split(1), strict=True):
        loss = F.cross_entropy(model(sample), label)
        slopes = torch.autograd.grad(loss, list(model.parameters()))
        losses.append(loss.item())
        norms.append(math.sqrt(sum(slope.square().sum().item() for slope in slopes)))
    run = run_of(tmp_path / "run", lambda model, y: F.cross_entropy(y, LABELS))
    for name, values in (("hardest_by_gradient", norms), ("hardest_by_loss", losses)):
        order = sorted(range(12), key=lambda n: -values[n])[:8]
        found = table(run, name)
        assert [row[0] for row in found] == order
        assert [row[1] for row in found] == pytest.approx([losses[n] for n in order], rel=1e-6)
        assert [row[2] for row in found] == pytest.approx([norms[n] for n in order], rel=1e-6)
    squares = [norm**2 for norm in norms]
    assert run.series("hardest_samples")[1].tolist() == pytest.approx([max(squares) / sum(squares)], rel=1e-6)


def test_fewer_than_eight(tmp_path: Path) -> None:
    found = table(run_of(tmp_path / "run", lambda model, y: F.cross_entropy(y, LABELS[:3]), INPUTS[:3]), "hardest_by_loss")
    assert sorted(row[0] for row in found[:3]) == [0, 1, 2]
    assert all(math.isnan(value) for row in found[3:] for value in row)


def test_a_broken_sample_comes_first(tmp_path: Path) -> None:
    inputs = INPUTS.clone()
    inputs[4, 2] = math.nan
    run = run_of(tmp_path / "run", lambda model, y: F.cross_entropy(y, LABELS), inputs)
    for name in ("hardest_by_loss", "hardest_by_gradient"):
        first, second = table(run, name)[:2]
        assert first[0] == 4 and math.isnan(first[1]) and math.isnan(first[2])
        assert all(map(math.isfinite, second))


def test_a_loss_that_is_not_known(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", lambda model, y: y.sin().mean())
    assert "ends in Sin" in run.not_measured["hardest_by_loss"]
    assert all(math.isnan(row[1]) and row[2] > 0 for row in table(run, "hardest_by_gradient"))
    assert "without losses, because" in run.how("hardest_by_gradient")[0]["note"]
    assert "hardest_samples" in run.names


def test_gradients_that_are_not_known(tmp_path: Path) -> None:
    """A hook changes a gradient, so that the samples' do not add up to it any more; their losses are known."""
    model = net()
    next(model.parameters()).register_hook(lambda slope: slope + 1)
    run = run_of(tmp_path / "run", lambda model, y: F.cross_entropy(y, LABELS), model=model)
    found = table(run, "hardest_by_loss")
    assert all(row[1] > 0 and math.isnan(row[2]) for row in found)
    assert "not covered" in run.not_measured["hardest_samples"]
    assert "without gradient norms, because the per-sample" in run.how("hardest_by_loss")[0]["note"]


def test_a_gradient_of_zero(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", lambda model, y: 0 * F.cross_entropy(y, LABELS))
    assert run.not_measured["hardest_samples"] == "the gradient is zero in every sample"


def test_a_batch_of_one(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", lambda model, y: F.cross_entropy(y, LABELS[:1]), INPUTS[:1])
    for name in HardestSamples().readings:
        assert "one sample" in run.not_measured[name]


def test_batch_normalisation_is_said() -> None:
    step = step_with(gradients(), conditional=True)
    step.reasons["sample_losses"] = "it was not asked for"
    reading = HardestSamples().measure(step)["hardest_by_gradient"]
    assert getattr(reading, "kind", None) == "conditional"
