"""What is recorded at every step, measured or not, and what measuring says of its own cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD

from cockpit_lite import Every, NotMeasured
from cockpit_lite.instruments import LearningRate, Loss, Overhead, StepTime
from cockpit_lite.run import load_run
from cockpit_lite.step import Step
from tests.identity import cockpit


def test_one_group_and_several() -> None:
    step = Step(0, {})
    step.learning_rates = [0.1]
    assert LearningRate().measure(step) == {"learning_rate": 0.1}
    step.learning_rates = [0.1, 0.2]
    expected = {"learning_rate": 0.1, "learning_rate/group0": 0.1, "learning_rate/group1": 0.2}
    assert LearningRate().measure(step) == expected


def test_what_a_step_does_not_know_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="the optimizer has no learning rate"):
        LearningRate().measure(Step(0, {}))
    with pytest.raises(NotMeasured, match="this step offers no loss"):
        Loss().measure(Step(0, {}))
    step = Step(0, {})
    step.reasons["loss"] = "no backward() was seen on this step"
    with pytest.raises(NotMeasured, match=r"no backward\(\) was seen"):
        Loss().measure(step)


def test_time_and_cost_are_passed_on() -> None:
    step = Step(0, {})
    step.training_seconds, step.overhead = 0.25, 0.04
    assert StepTime().measure(step) == {"step_time": 0.25}
    assert Overhead().measure(step) == {"overhead": 0.04}


def test_loss_rate_and_time_are_there_at_every_step(tmp_path: Path) -> None:
    model = nn.Linear(3, 1)
    optimizer = SGD([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.2}], lr=0.1)
    losses = []
    with cockpit(model, optimizer, run=tmp_path / "run", instruments="light", schedule=Every(3), budget=None):
        for _ in range(7):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 3)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    run = load_run(tmp_path / "run")
    assert run.series("loss")[1].tolist() == pytest.approx(losses, rel=1e-6)
    for name, steps in {"learning_rate": range(7), "step_time": range(7), "overhead": (0, 3, 6)}.items():
        assert run.series(name)[0].tolist() == list(steps), name
    assert (run.series("step_time")[1] > 0).all()
    cost = run.info["cost"]
    assert cost["share"] == pytest.approx(cost["measuring_seconds"] / cost["training_seconds"])
    assert run.series("overhead")[1][0] == 0
