from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cockpit_lite import load_run
from cockpit_lite.instruments.gradient_scale import GradientScale, growth_per_layer
from cockpit_lite.run import Run
from tests.identity import EVERYTHING, cockpit


def watch(model: nn.Module, folder: Path) -> tuple[Run, dict[str, float]]:
    """Return a run of one step, and gradient over weights computed by hand."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    expected = {}
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": [GradientScale()]}):
        model(torch.randn(16, 8, generator=torch.Generator().manual_seed(0))).square().mean().backward()
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and weight.grad is not None:
                expected[name] = (weight.grad.double().norm() / weight.detach().double().norm()).item()
        optimizer.step()
    return load_run(folder), expected


def first(run: Run, name: str) -> float:
    return float(run.series(name)[1][0])


def deep(activation: type[nn.Module], scale: float, depth: int = 10, width: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(width if index else 8, width), activation()]
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight).mul_(scale)
    return model


def test_against_norms_by_hand(tmp_path: Path) -> None:
    run, expected = watch(deep(nn.Tanh, 1.0, depth=3), tmp_path / "run")
    assert run.layers("gradient_scale") == ["0.weight", "2.weight", "4.weight", "6.weight"]
    found = {name: first(run, f"gradient_scale/{name}") for name in expected}
    assert found == pytest.approx(expected, rel=1e-5)
    slope = np.polyfit(range(4), np.log(list(expected.values())), 1)[0]
    assert first(run, "gradient_growth") == pytest.approx(math.exp(-slope), rel=1e-4)


def test_the_whole_is_that_of_the_joined_vectors(tmp_path: Path) -> None:
    model = deep(nn.Tanh, 1.0, depth=3)
    before = [weight.detach().clone() for weight in model.parameters() if weight.dim() > 1]
    run, _ = watch(model, tmp_path / "run")
    gradients = [weight.grad for weight in model.parameters() if weight.dim() > 1]
    expected = math.sqrt(sum(g.norm().item() ** 2 for g in gradients) / sum(w.norm().item() ** 2 for w in before))
    assert first(run, "gradient_scale") == pytest.approx(expected, rel=1e-5)


def test_it_tells_vanishing_and_exploding_from_healthy(tmp_path: Path) -> None:
    growth = {
        name: first(watch(deep(activation, scale), tmp_path / name)[0], "gradient_growth")
        for name, activation, scale in (
            ("sigmoid", nn.Sigmoid, 1.0),
            ("healthy", nn.Identity, 1.0),
            ("exploding", nn.Tanh, 8.0),
        )
    }
    assert growth["sigmoid"] < 0.5
    assert 0.8 < growth["healthy"] < 1.3
    assert growth["exploding"] > 1.3


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_growth_is_the_factor_from_each_layer_to_the_one_before(factor: float) -> None:
    scales = [factor**-place for place in range(7)]
    assert growth_per_layer(scales) == pytest.approx(factor)
    scales[1], scales[4], scales[6] = 0.0, math.inf, math.nan  # the others keep their place
    assert growth_per_layer(scales) == pytest.approx(factor)


def test_one_usable_layer_has_no_growth() -> None:
    assert math.isnan(growth_per_layer([0.0, 2.0, 0.0]))


def test_without_a_weight_matrix_there_is_a_reason(tmp_path: Path) -> None:
    run, _ = watch(nn.Sequential(nn.LayerNorm(8)), tmp_path / "run")
    assert "weight matrix" in run.not_measured["gradient_scale"]


def test_two_layers_have_no_growth(tmp_path: Path) -> None:
    run, _ = watch(deep(nn.Tanh, 1.0, depth=1), tmp_path / "run")
    assert "gradient_scale" in run.names
    assert "gradient_growth" not in run.names
