"""Drift of the tangent kernel: its ends, and in real loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.errors import SetupError
from cockpit_lite.instruments.tangent_kernel import TangentKernelDrift, kernel_distance
from cockpit_lite.run import Run
from tests.identity import EVERYTHING, assert_identical, cockpit

TARGETS = torch.arange(32) % 4


def data() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 6, generator=generator) + TARGETS[:, None] * torch.tensor([1.0, -1, 0, 1, 0, 0])


def trained(model: nn.Module, folder: Path, rate: float, steps: int = 20, scale: float = 1.0) -> Run:
    """Train full batch under a cockpit, on the model's output times ``scale``."""
    optimizer = SGD(model.parameters(), lr=rate)
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": ["tangent_kernel"]}):
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data()) * scale, TARGETS).backward()
            optimizer.step()
    return load_run(folder)


def net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4))


def test_distance_is_that_of_the_angle() -> None:
    first, second = (torch.randn(5, 5, dtype=torch.float64) for _ in range(2))
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    assert kernel_distance(first, second).item() == pytest.approx(1 - cosine.item())
    assert kernel_distance(first, 7 * first).item() == pytest.approx(0, abs=1e-12)
    assert kernel_distance(first, torch.zeros(5, 5)) == 1.0
    assert kernel_distance(first, -first).item() == pytest.approx(2)


def test_a_linear_model_has_one_kernel_for_life(tmp_path: Path) -> None:
    run = trained(nn.Linear(6, 4), tmp_path / "run", rate=0.5)
    steps, drift = run.series("tangent_kernel")
    assert steps.tolist() == list(range(20))
    assert drift.max() < 1e-6
    assert run.series("tangent_kernel_growth")[1] == pytest.approx([1.0] * 20, rel=1e-5)


def test_a_scaled_up_output_is_lazy_and_a_plain_one_learns_features(tmp_path: Path) -> None:
    """Chizat: with the output scaled by a and the rate by 1/a^2 the same fit takes a 1/a as long way."""
    plain = trained(net(30), tmp_path / "plain", rate=0.5).series("tangent_kernel")[1]
    lazy = trained(net(30), tmp_path / "lazy", rate=0.5 / 400, scale=20.0).series("tangent_kernel")[1]
    assert max(plain[0], lazy[0]) < 1e-6
    assert plain[-1] > 0.02
    assert lazy[-1] < plain[-1] / 10


def test_it_is_the_kernel_of_the_weights_before_the_step(tmp_path: Path) -> None:
    run = trained(net(30), tmp_path / "run", rate=0.5, steps=3)
    model = net(30)
    optimizer = SGD(model.parameters(), lr=0.5)
    kernels = []
    for _ in range(3):
        outputs = model(data()[:16])
        generator = torch.Generator().manual_seed(0)
        kernel = torch.zeros(16, 16)
        for _ in range(2):
            signs = torch.randint(2, (4,), generator=generator) * 2 - 1
            gradients = [torch.autograd.grad(row @ signs.float(), list(model.parameters()), retain_graph=True) for row in outputs]
            jacobian = torch.stack([torch.cat([values.flatten() for values in row]) for row in gradients])
            kernel += jacobian @ jacobian.T / 2
        kernels.append(kernel)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data()), TARGETS).backward()
        optimizer.step()
    expected = [kernel_distance(kernels[0], kernel).item() for kernel in kernels]
    assert run.series("tangent_kernel")[1] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    growth = [(kernel.trace() / kernels[0].trace()).item() for kernel in kernels]
    assert run.series("tangent_kernel_growth")[1] == pytest.approx(growth, rel=1e-4)
    how = run.how("tangent_kernel")[2]
    assert how == {"kind": "estimated", "note": "on 16 samples since step 0, outputs projected on 2 directions"}


def test_a_kernel_of_other_parameters_does_not_compare(tmp_path: Path) -> None:
    model = net(5)
    optimizer = SGD(model.parameters(), lr=0.0)
    with cockpit(model, optimizer, run=tmp_path / "run", **{**EVERYTHING, "instruments": ["tangent_kernel"]}):
        for _ in range(2):
            nn.functional.cross_entropy(model(data()), TARGETS).backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.requires_grad_(False)
                model[2].bias.requires_grad_()
    reasons = load_run(tmp_path / "run").not_measured
    assert "other parameters are covered" in reasons["tangent_kernel"]


def test_watching_changes_nothing(tmp_path: Path) -> None:
    def train(watch: Any) -> Any:
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Dropout2d(0.3),
            nn.Flatten(),
            nn.Linear(64, 4),
        )
        fired: list[int] = []
        model[0].weight.register_hook(lambda gradient: fired.append(1))
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        with watch(model, optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randn(20, 1, 6, 6)), TARGETS[:20]).backward()
                optimizer.step()
        return fired

    run = assert_identical(train, tmp_path / "run", {**EVERYTHING, "instruments": ["tangent_kernel"]})
    steps, drift = run.series("tangent_kernel")
    assert steps.tolist() == [0, 1, 2, 3]
    assert drift[0] < 1e-6 < drift[3]
    assert run.how("tangent_kernel")[0]["kind"] == "conditional"


def test_no_projection_is_refused() -> None:
    with pytest.raises(SetupError, match="at least 1 is needed"):
        TangentKernelDrift(projections=0)
