"""Preflight on sound and broken models; nothing of the user's is changed by it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite import Cockpit, SetupError
from cockpit_lite.preflight import Preflight
from tests.zoo import ZOO


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 20, generator=generator), torch.randint(5, (32,), generator=generator)


def sound() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 5))


def flown(model: nn.Module, data: Any = None, loss_fn: Any = F.cross_entropy) -> Preflight:
    cockpit = Cockpit(model, torch.optim.Adam(model.parameters(), lr=1e-3), loss_fn)
    return cockpit.preflight(batch() if data is None else data)


def failures(found: Preflight) -> set[str]:
    return {check.name for check in found.checks if check.outcome == "failed"}


def test_a_sound_model_passes(capsys: pytest.CaptureFixture[str]) -> None:
    found = flown(sound())
    assert found.passed and failures(found) == set()
    assert {"samples stay apart", "backward agrees with differences", "can fit one small batch", "softmax-twice"} <= {
        check.name for check in found.checks if check.outcome == "passed"
    }
    found.print()
    printed = capsys.readouterr()
    assert "can fit one small batch" in printed.out and printed.err == ""
    assert str(found).count("\n") == len(found.checks) - 1


def test_nothing_of_the_users_changes() -> None:
    model = sound()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    inputs, targets = batch()
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())  # type: ignore[index]
    Cockpit(model, optimizer, F.cross_entropy).preflight((inputs, targets))
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), states[2])
    after = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert model.training


class Between(nn.Module):
    """A layer, something of one's own, and another layer."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.middle = nn.Linear(20, 32), nn.Linear(32, 5), middle

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.middle(self.first(inputs).relu()))


class WrongBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> Tensor:
        return inputs * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 3


@pytest.mark.parametrize(
    ("middle", "expected"),
    [
        (lambda hidden: hidden - hidden.mean(0), {"samples stay apart"}),
        (lambda hidden: hidden.T.reshape(hidden.shape), {"samples stay apart"}),
        (WrongBackward.apply, {"backward agrees with differences"}),
        (lambda hidden: hidden * 0, {"can fit one small batch"}),
        (Tensor.detach, {"graph-cut", "backward agrees with differences"}),
    ],
)
def test_what_only_an_attempt_shows(middle: Callable[[Tensor], Tensor], expected: set[str]) -> None:
    assert expected <= failures(flown(Between(middle)))


def test_what_the_rules_know(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(sound(), nn.Softmax(1))
    inputs, targets = batch()
    found = flown(model, (inputs * 500, targets))
    assert {"softmax-twice", "inputs-not-normalised"} <= failures(found)
    assert capsys.readouterr() == ("", "")  # the three steps are none of the user's


@pytest.mark.parametrize(
    "name", ["mlp", "lstm", "gpt_tied", "encoder_dropout", "vae", "sum_loss", "graph_of_samples", "physics_informed"]
)
def test_models_of_many_kinds(name: str) -> None:
    architecture = ZOO[name]
    model = architecture.build()
    data = architecture.batch(8, torch.Generator().manual_seed(0))
    found = Cockpit(model, torch.optim.Adam(model.parameters(), lr=1e-3)).preflight(data, loss=architecture.loss)
    assert "backward agrees with differences" not in failures(found), str(found)


def test_errors_say_what_to_do() -> None:
    model = sound()
    cockpit = Cockpit(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(SetupError, match="loss_fn"):
        cockpit.preflight(batch())
    with pytest.raises(SetupError, match="loss=lambda"):
        Cockpit(model, torch.optim.Adam(model.parameters()), F.cross_entropy).preflight(batch()[0])
    with pytest.raises(SetupError, match="cannot be called"):
        flown(model, (torch.randn(4, 3), torch.zeros(4).long()))
