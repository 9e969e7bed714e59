"""Curvature of a step that comes in micro-batches, and of one with several losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import Cockpit, Every, load_run
from cockpit_lite.instruments.curvature_along_gradient import CurvatureAlongGradient
from cockpit_lite.instruments.ggn_trace import GaussNewtonTrace
from cockpit_lite.instruments.max_eigenvalue import MaxEigenvalue
from cockpit_lite.run import Run

INPUTS, TARGETS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def train(folder: Path, backward: Callable[[nn.Module], object], steps: int = 3) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    optimizer = SGD(model.parameters(), lr=0.1)
    instruments = [MaxEigenvalue(tolerance=1e-4, max_products=60), CurvatureAlongGradient(), GaussNewtonTrace()]
    with Cockpit(model, optimizer, run=folder, instruments=instruments, schedule=Every(1), budget=None):
        for _ in range(steps):
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
    return load_run(folder)


def loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(INPUTS), TARGETS)


def in_parts(model: nn.Module) -> None:
    for _ in range(4):
        (loss(model) / 4).backward()


@pytest.mark.parametrize("name", ["max_eigenvalue", "curvature_along_gradient"])
def test_equal_micro_batches_have_the_curvature_of_the_whole_step(name: str, tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", lambda model: loss(model).backward())
    parts = train(tmp_path / "parts", in_parts)
    steps, values = parts.series(name)
    assert steps.tolist() == [1, 2]  # how many there are is known from the second step on
    assert values.tolist() == pytest.approx(whole.series(name)[1][1:].tolist(), rel=1e-3)
    assert "of the first of 4 micro-batches" in parts.how(name)[1]["note"]


def test_the_sampled_trace_is_that_of_the_step_too(tmp_path: Path) -> None:
    run = train(tmp_path / "run", in_parts)
    whole = train(tmp_path / "whole", lambda model: loss(model).backward())
    assert run.how("ggn_trace")[1]["note"] == "of the first of 4 micro-batches; from random signs at the outputs"
    assert run.series("ggn_trace")[1].mean() == pytest.approx(whole.series("ggn_trace")[1].mean(), rel=0.5)


def test_several_losses_of_one_forward_pass_are_not_spoken_for_by_the_first(tmp_path: Path) -> None:
    def two_losses(model: nn.Module) -> None:
        outputs = model(INPUTS)
        F.cross_entropy(outputs, TARGETS).backward(retain_graph=True)
        outputs.square().mean().backward()

    run = train(tmp_path / "run", two_losses)
    assert "max_eigenvalue" not in run.names
    assert "2 backward passes" in run.not_measured["max_eigenvalue"]


def test_another_number_of_micro_batches_than_expected_is_said(tmp_path: Path) -> None:
    counts = iter([2, 3, 3])

    def changing(model: nn.Module) -> None:
        for _ in range(next(counts)):
            loss(model).backward()

    run = train(tmp_path / "run", changing)
    assert run.series("max_eigenvalue")[0].tolist() == [2]
