"""Real training: each broken demo is named, and healthy nets of many kinds raise nothing above a note."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from cockpit_lite import Cockpit, demo, load_run
from cockpit_lite.alert import Alert
from cockpit_lite.demo import VARIANTS, run_demo
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.ranking import rank
from tests.zoo import ZOO

#: Enough to see the fault; the healthy one learns for as long as it may.
STEPS = {None: 120, "exploding": 6, "vanishing": 3, "ill-conditioned": 130, "lr-too-high": 60, "lr-too-low": 56}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cockpit, "_write_results", lambda self: None)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    loss: Callable[[], Tensor],
    steps: int,
    run: Path,
    after_step: Callable[[], None] | None = None,
) -> list[Alert]:
    """Train under a cockpit and return the findings, the first cause first."""
    schedule = demo._often_at_first
    with Cockpit(model, optimizer, run=run, instruments="standard", schedule=schedule, budget=None) as cockpit:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            if after_step is not None:
                after_step()
    return rank(cockpit.alerts, RULES)


def loud(alerts: list[Alert]) -> list[str]:
    return [str(alert) for alert in alerts if alert.severity != "note"]


@pytest.mark.parametrize("broken", VARIANTS)
def test_every_demo_is_named(broken: str | None, tmp_path: Path) -> None:
    run = run_demo(broken, run=tmp_path / "run", steps=STEPS[broken], progress=False)
    findings = rank(run.alerts, RULES)
    expected = VARIANTS[broken].alert
    assert [alert.name for alert in findings[:1]] == ([] if expected is None else [expected])
    if expected is None:
        assert run.series("loss")[1][-10:].mean() < 0.5  # it has learnt: silence means something


SENSIBLE: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: SGD(model.parameters(), lr=0.05),
    "momentum": lambda model: SGD(model.parameters(), lr=0.02, momentum=0.9),
    "adam": lambda model: Adam(model.parameters(), lr=1e-3),
    "adamw": lambda model: AdamW(model.parameters(), lr=3e-3),
}

#: A few of each kind, and each optimizer; the whole zoo under every optimizer takes minutes and was silent, too.
ZOO_RUNS = [
    ("mlp", "momentum"),
    ("deep_linear", "sgd"),
    ("residual_mlp", "adamw"),
    ("resnet_batch_norm", "momentum"),
    ("unet", "sgd"),
    ("siren", "adam"),
    ("sum_loss", "adam"),
]


@pytest.mark.parametrize(("name", "optimizer"), ZOO_RUNS)
def test_the_zoo_raises_nothing(name: str, optimizer: str, tmp_path: Path) -> None:
    architecture = ZOO[name]
    model = architecture.build()
    generator = torch.Generator().manual_seed(1)
    batches = [architecture.batch(16, generator) for _ in range(4)]
    step = iter(range(10**6))

    def loss() -> Tensor:
        return architecture.loss(model, batches[next(step) % 4])

    assert loud(train(model, SENSIBLE[optimizer](model), loss, 70, tmp_path / "run")) == []


def mlp(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), activation(), nn.Linear(48, 48), activation(), nn.Linear(48, 10))


def digits() -> tuple[Tensor, Tensor]:
    images, labels = demo.load_images()
    return images[:1500], labels[:1500]


def batches(model: nn.Module, labels: Callable[[Tensor], Tensor] = lambda labels: labels) -> Callable[[], Tensor]:
    images, truth = digits()
    targets = labels(truth)

    def loss() -> Tensor:
        batch = torch.randint(len(images), (64,))
        return F.cross_entropy(model(images[batch]), targets[batch])

    return loss


def test_labels_that_are_noise_or_partly_noise(tmp_path: Path) -> None:
    for name, share in (("partly", 0.4), ("all", 1.0)):
        model = mlp()

        def wrong(labels: Tensor, share: float = share) -> Tensor:
            return torch.where(torch.rand(len(labels)) < share, torch.randint(10, labels.shape), labels)

        alerts = train(model, SGD(model.parameters(), lr=0.3), batches(model, wrong), 150, tmp_path / name)
        assert loud(alerts) == []


def test_regression_down_to_its_noise(tmp_path: Path) -> None:
    inputs = torch.randn(1000, 10)
    targets = 0.1 * inputs.sum(1, keepdim=True) + torch.randn(1000, 1)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))

    def loss() -> Tensor:
        batch = torch.randint(1000, (64,))
        return F.mse_loss(model(inputs[batch]), targets[batch])

    assert loud(train(model, SGD(model.parameters(), lr=0.3), loss, 200, tmp_path / "run")) == []


def test_warm_up_cosine_and_a_gentle_second_run(tmp_path: Path) -> None:
    model = mlp(nn.Tanh)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    course = lambda step: min((step + 1) / 60, 1) * (1 + math.cos(math.pi * max(step - 60, 0) / 140)) / 2  # noqa: E731
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, course)
    alerts = train(model, optimizer, batches(model), 200, tmp_path / "first", after_step=scheduler.step)
    assert loud(alerts) == []
    gently = train(model, SGD(model.parameters(), lr=1e-5), batches(model), 120, tmp_path / "second")
    assert loud(gently) == []


def test_weights_that_start_at_zero(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert loud(train(model, SENSIBLE["sgd"](model), batches(model), 100, tmp_path / "run")) == []


@pytest.mark.parametrize(("rate", "expected"), [(0.3, ["learning-rate-too-high"]), (1e-3, []), (1e-7, ["learning-rate-too-low"])])
def test_adam_by_the_steps_it_takes(rate: float, expected: list[str], tmp_path: Path) -> None:
    model = mlp()
    alerts = train(model, Adam(model.parameters(), lr=rate), batches(model), 60, tmp_path / "run")
    assert [alert.name for alert in alerts][:1] == expected  # what follows from it comes after it
    not_checked = {check.name: check.reason for check in load_run(tmp_path / "run").report().not_checked}
    assert "Adam takes others" in not_checked["ill-conditioning"]  # rather than passed


def test_the_advised_learning_rate_trains(tmp_path: Path) -> None:
    model = mlp()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    alert = train(model, SGD(model.parameters(), lr=5.0, momentum=0.9), batches(model), 60, tmp_path / "high")[0]
    assert alert.name == "learning-rate-too-high"
    advised = float(alert.advice.partition("about ")[2].split()[0])
    model.load_state_dict(start)
    loss = batches(model)
    assert loud(train(model, SGD(model.parameters(), lr=advised, momentum=0.9), loss, 150, tmp_path / "advised")) == []
    assert loss().item() < 1.0
