from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.instruments.curvature_noise import CurvatureNoise, curvature_noise
from cockpit_lite.run import Run
from tests.identity import cockpit
from tests.zoo import ZOO


def one_step(name: str, folder: Path, size: int = 6) -> tuple[Run, nn.Module, nn.Module]:
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64).eval()
    before = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=folder, instruments=[CurvatureNoise()], budget=None):
        architecture.loss(model, architecture.batch(size, torch.Generator().manual_seed(5), torch.float64)).backward()
        optimizer.step()
    return load_run(folder), before, model


def samples_curvature(name: str, before: nn.Module, after: nn.Module, size: int = 6) -> torch.Tensor:
    """Return d'(J_n'L_n''J_n)d of every sample: outputs moved by central differences, then the loss differentiated twice."""
    architecture = ZOO[name]
    batch = architecture.batch(size, torch.Generator().manual_seed(5), torch.float64)
    new, d = dict(after.named_parameters()), {}
    for key, parameter in before.named_parameters():
        d[key] = (new[key] - parameter).detach()
    values = []
    for sample in architecture.samples(batch):
        sides = []
        for sign in (1, -1):
            moved = copy.deepcopy(before)
            with torch.no_grad():
                for key, parameter in moved.named_parameters():
                    parameter.add_(d[key], alpha=sign * 1e-4)
                sides.append(moved(*sample.inputs))
        move = (sides[0] - sides[1]) / 2e-4
        output = before(*sample.inputs).detach()

        class Fixed(nn.Module):
            def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
                return output + along * move  # noqa: B023

        along = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(architecture.loss(Fixed(), sample), along, create_graph=True)
        values.append(torch.autograd.grad(slope, along)[0])
    return torch.stack(values)


@pytest.mark.parametrize("name", ["mlp", "linear_regression", "conv", "gpt_tied", "rnn", "flattening", "encoder_time_first"])
def test_against_a_loop_over_the_samples(name: str, tmp_path: Path) -> None:
    run, before, after = one_step(name, tmp_path / "run")
    curvatures = samples_curvature(name, before, after)
    expected = (curvatures.var() / len(curvatures)).sqrt() / curvatures.mean().abs()
    assert run.series("curvature_noise")[1].tolist() == pytest.approx([expected.item()], rel=1e-4)
    assert run.how("curvature_noise")[0]["kind"] == "gauss-newton"


def test_falls_with_the_root_of_the_batch() -> None:
    draws = torch.randn(64, 4_096, generator=torch.Generator().manual_seed(0), dtype=torch.float64).square()
    large = torch.stack([curvature_noise(row) for row in draws]).mean().item()
    small = torch.stack([curvature_noise(row[:256]) for row in draws]).mean().item()
    assert small / large == pytest.approx(4, rel=0.05)
    assert large == pytest.approx(2**0.5 / 64, rel=0.02)  # variance 2, mean 1


def test_samples_that_agree_have_no_noise() -> None:
    assert curvature_noise(torch.full((8,), 0.25)).item() == 0


@pytest.mark.parametrize(("size", "reason"), [(1, "one sample")])
def test_one_sample_has_a_reason(size: int, reason: str, tmp_path: Path) -> None:
    run, _, _ = one_step("mlp", tmp_path / "run", size)
    assert reason in run.not_measured["curvature_noise"]


def test_a_linear_loss_has_a_reason(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[CurvatureNoise()], budget=None):
        model(torch.ones(3, 2)).mean().backward()
        optimizer.step()
    assert load_run(tmp_path / "run").not_measured["curvature_noise"] == "the loss is not curved along the step"
