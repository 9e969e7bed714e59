"""The loss by sample on real steps, against the losses of one-sample batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from cockpit_lite import Every, load_run
from cockpit_lite.instrument import SAMPLE_LOSSES, Instrument, Readings
from cockpit_lite.step import Step
from tests.identity import cockpit
from tests.zoo import ZOO, Architecture

#: The divergence of a variational autoencoder has a constant in it that no graph shows.
CONSTANTS = ("vae",)


class Losses(Instrument):
    """Keeps the losses by sample, since the log has nine digits only."""

    name = "losses"
    needs = (SAMPLE_LOSSES,)

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def measure(self, step: Step) -> Readings:
        self.found.append(step.sample_losses.clone())
        return {"losses": 0.0}


def watched(model: nn.Module, folder: Path, train: Callable[[Optimizer], None]) -> tuple[list[float], str]:
    """Return the losses by sample of the one step that is trained, or why there are none."""
    optimizer = SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    losses = Losses()
    with cockpit(model, optimizer, run=folder, instruments=[losses], schedule=Every(1), budget=None):
        train(optimizer)
    if not losses.found:
        return [], load_run(folder).not_measured["losses"]
    return losses.found[0].tolist(), ""


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if not a.interacts], ids=lambda a: a.name)
def test_zoo(architecture: Architecture, tmp_path: Path) -> None:
    model = architecture.build(dtype=torch.float64).eval()
    batch = architecture.batch(6, torch.Generator().manual_seed(0), torch.float64)
    weights = architecture.weights(batch)
    losses = [architecture.loss(model, sample).item() for sample in architecture.samples(batch)]

    def train(optimizer: Optimizer) -> None:
        architecture.loss(model, batch).backward()
        optimizer.step()

    found, reason = watched(model, tmp_path / "run", train)
    if architecture.name in CONSTANTS:
        assert "a constant" in reason
    else:
        assert found == pytest.approx((weights * torch.tensor(losses, dtype=torch.float64)).tolist(), rel=1e-9)


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


INPUTS = torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(7) % 3


def single(model: nn.Module, *parts: slice) -> list[float]:
    """Losses as they are added up over micro-batches, each a mean."""
    with torch.no_grad():
        losses = [F.cross_entropy(model(INPUTS[part]), LABELS[part], reduction="none") for part in parts]
    return torch.cat([values / len(values) for values in losses]).tolist()


def test_accumulation_of_unequal_parts(tmp_path: Path) -> None:
    model = net()
    expected = single(model, slice(0, 3), slice(3, 7))

    def train(optimizer: Optimizer) -> None:
        for part in (slice(0, 3), slice(3, 7)):
            F.cross_entropy(model(INPUTS[part]), LABELS[part]).backward()
        optimizer.step()

    assert watched(model, tmp_path / "run", train)[0] == pytest.approx(expected, rel=1e-12)


def test_two_losses_of_one_forward(tmp_path: Path) -> None:
    model = net()
    outputs = model(INPUTS).detach()
    expected = (F.cross_entropy(outputs, LABELS, reduction="none") / 7 + 0.1 * outputs.square().sum(1)).tolist()

    def train(optimizer: Optimizer) -> None:
        outputs = model(INPUTS)
        F.cross_entropy(outputs, LABELS).backward(retain_graph=True)
        (0.1 * outputs.square().sum()).backward()
        optimizer.step()

    assert watched(model, tmp_path / "run", train)[0] == pytest.approx(expected, rel=1e-12)


def test_several_roots_and_seeds(tmp_path: Path) -> None:
    model = net()
    outputs = model(INPUTS).detach()
    losses = F.cross_entropy(outputs, LABELS, reduction="none")
    weights = torch.linspace(0.1, 1.0, 7, dtype=torch.float64)
    expected = (losses * weights + 2 * outputs.square().sum(1)).tolist()

    def train(optimizer: Optimizer) -> None:
        outputs = model(INPUTS)
        roots = [F.cross_entropy(outputs, LABELS, reduction="none"), outputs.square().sum()]
        torch.autograd.backward(roots, [weights, torch.tensor(2.0, dtype=torch.float64)])
        optimizer.step()

    assert watched(model, tmp_path / "run", train)[0] == pytest.approx(expected, rel=1e-12)


def test_gradient_scaler(tmp_path: Path) -> None:
    model = net().float()
    expected = [loss / 7 for loss in F.cross_entropy(model(INPUTS.float()), LABELS, reduction="none").detach().tolist()]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def train(optimizer: Optimizer) -> None:
        scaler.scale(F.cross_entropy(model(INPUTS.float()), LABELS)).backward()
        scaler.step(optimizer)
        scaler.update()

    assert watched(model, tmp_path / "run", train)[0] == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_was_thrown_away(tmp_path: Path) -> None:
    model = net()
    expected = single(model, slice(3, 7))

    def train(optimizer: Optimizer) -> None:
        for part in (slice(0, 3), slice(3, 7)):
            optimizer.zero_grad()
            F.cross_entropy(model(INPUTS[part]), LABELS[part]).backward()
        optimizer.step()

    assert watched(model, tmp_path / "run", train)[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda model, y: F.cross_entropy(y, LABELS) + 0.1 * model[0].weight.square().sum(), "parameters themselves"),
        (lambda model, y: y.sin().mean(), "ends in Sin"),
        (lambda model, y: F.cross_entropy(y.T, torch.zeros(3, dtype=torch.long)), "the axis of the classes"),
        (lambda model, y: F.mse_loss(y, torch.zeros_like(y)) + 1.0, "a constant"),
    ],
    ids=["weight decay", "unknown", "classes", "constant"],
)
def test_what_is_not_known_is_said(loss: Callable[[nn.Module, Tensor], Tensor], reason: str, tmp_path: Path) -> None:
    model = net()

    def train(optimizer: Optimizer) -> None:
        loss(model, model(INPUTS)).backward()
        optimizer.step()

    losses, why = watched(model, tmp_path / "run", train)
    assert losses == []
    assert reason in why
