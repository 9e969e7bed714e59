"""What the samples of a batch say, over the zoo against explicit matrices of per-sample gradients in float64."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.instruments.cabs import cabs
from cockpit_lite.instruments.gradient_alignment import gradient_alignment
from cockpit_lite.run import Run
from tests import reference
from tests.identity import EVERYTHING, cockpit
from tests.zoo import ZOO, Architecture

LEARNING_RATE = 0.05
N = 6
NAMES = ("cabs", "gsnr", "early_stopping", "gradient_alignment", "conflicting_samples")
INDEPENDENT = [a for a in ZOO.values() if not a.interacts]


def signal_to_noise(gradients: Tensor) -> float:
    """Return the mean of G_j^2 / (var_j + 1e-5)."""
    mean, variance = gradients.mean(0), gradients.var(0, correction=0)
    return sum((m**2 / (v + 1e-5)).item() for m, v in zip(mean, variance, strict=True)) / gradients.shape[1]


def by_definition(gradients: Tensor, loss: float) -> dict[str, float]:
    """Return the readings from the (N, D) matrix of g_n, element by element."""
    n, elements = gradients.shape
    mean = gradients.mean(0)
    pairs = [gradients[i].dot(gradients[j]).item() for i, j in permutations(range(n), 2)]
    sample_variance = gradients.var(0, correction=1)
    return {
        "cabs": LEARNING_RATE * sum((row - mean).square().sum().item() for row in gradients) / n / loss,
        "gsnr": signal_to_noise(gradients),
        "early_stopping": 1 - n / elements * sum((m**2 / (s + 1e-5)).item() for m, s in zip(mean, sample_variance, strict=True)),
        "gradient_alignment": sum(pairs) / len(pairs) / gradients.square().sum(1).mean().item(),
        "conflicting_samples": sum(row.dot(mean).item() < 0 for row in gradients) / n,
    }


@pytest.mark.parametrize("architecture", INDEPENDENT, ids=lambda a: a.name)
def test_over_the_zoo(architecture: Architecture, tmp_path: Path) -> None:
    model, before = (architecture.build(dtype=torch.float64).eval() for _ in range(2))
    batch = architecture.batch(N, torch.Generator().manual_seed(5), torch.float64)
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
    with cockpit(model, optimizer, run=tmp_path / "run", **{**EVERYTHING, "instruments": list(NAMES)}):
        loss = architecture.loss(model, batch)
        loss.backward()
        optimizer.step()
    run = load_run(tmp_path / "run")
    contributions = reference.contributions(architecture, before, batch)
    expected = by_definition(N * reference.matrix(contributions), loss.item())
    for name, value in expected.items():
        if name in run.names:
            found = float(run.series(name)[1][0])
            assert found == pytest.approx(value, rel=1e-6, abs=1e-10), name
        else:
            assert run.not_measured[name]
    for name, values in contributions.items():
        if f"gsnr/{name}" in run.names:
            layer = signal_to_noise(N * values.reshape(N, -1))
            assert float(run.series(f"gsnr/{name}")[1][0]) == pytest.approx(layer, rel=1e-6, abs=1e-10)


def test_most_of_the_zoo_is_measured(tmp_path: Path) -> None:
    """The test above would pass on an instrument that never measures."""
    measured = 0
    for architecture in INDEPENDENT[:12]:
        model = architecture.build().eval()
        optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
        folder = tmp_path / architecture.name
        with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": list(NAMES)}):
            architecture.loss(model, architecture.batch(N, torch.Generator().manual_seed(5))).backward()
            optimizer.step()
        measured += set(NAMES) <= set(load_run(folder).names)
    assert measured >= 11


def test_a_sum_of_losses_asks_for_the_same_batch_as_their_mean_at_the_same_step() -> None:
    gradients = torch.randn(8, 5, dtype=torch.float64)
    losses = torch.rand(8, dtype=torch.float64)
    summed = cabs(gradients.square().sum(1), gradients.sum(0).square().sum(), 0.1 / 8, losses.sum())
    contributions = gradients / 8
    mean = cabs(contributions.square().sum(1), contributions.sum(0).square().sum(), 0.1, losses.mean())
    assert summed.item() == pytest.approx(mean.item())


def test_alignment_at_its_ends() -> None:
    same, opposed = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 4.0])
    assert gradient_alignment(same, torch.tensor(9.0)) == 1.0
    assert gradient_alignment(opposed, torch.tensor(0.0)) == -1.0


def test_units_are_unscaled_and_accumulated_batches_are_one(tmp_path: Path) -> None:
    """The same samples in two micro-batches of half weight, and in one batch, read the same."""
    inputs, targets = torch.randn(8, 3), torch.randn(8, 1)
    found = []
    for parts in (1, 2):
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
        folder = tmp_path / str(parts)
        with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": list(NAMES)}):
            for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
                (nn.functional.mse_loss(model(x), y) / parts).backward()
            optimizer.step()
        run = load_run(folder)
        found.append([float(run.series(name)[1][0]) for name in NAMES])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_has_no_variance(name: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 1))
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
    with cockpit(model, optimizer, run=tmp_path / "run", **{**EVERYTHING, "instruments": [name]}):
        model(torch.randn(1, 3)).square().sum().backward()
        optimizer.step()
    assert "one sample" in load_run(tmp_path / "run").not_measured[name]


def one_step(folder: Path, names: list[str], factor: float, shift: float) -> Run:
    model = nn.Sequential(nn.Linear(3, 1))
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": names}):
        (factor * model(torch.randn(4, 3)).square().mean() + shift).backward()
        optimizer.step()
    return load_run(folder)


@pytest.mark.parametrize("shift", [0.0, -5.0], ids=["zero", "negative"])
def test_no_batch_size_suits_a_loss_that_is_not_positive(shift: float, tmp_path: Path) -> None:
    run = one_step(tmp_path / "run", ["cabs"], float(shift != 0), shift)
    assert "cabs" not in run.names
    assert run.not_measured["cabs"] == "the loss is not positive"


def test_a_loss_that_is_not_a_number_is_shown(tmp_path: Path) -> None:
    run = one_step(tmp_path / "run", ["cabs"], 1.0, math.nan)
    assert math.isnan(run.series("cabs")[1][0])


def test_a_gradient_of_zero_has_no_signal(tmp_path: Path) -> None:
    """The damped ratios are zero then, which says stop; a batch size that suits a flat loss is zero."""
    run = one_step(tmp_path / "run", ["gsnr", "early_stopping", "cabs"], 0.0, 1.0)
    assert [float(run.series(name)[1][0]) for name in ("gsnr", "early_stopping", "cabs")] == [0.0, 1.0, 0.0]
