"""Optimizer steps are seen through PyTorch's global hooks; nothing stays on the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer
from torch.optim.lr_scheduler import StepLR

from cockpit_lite.probes.optimizer import OptimizerProbe


class Ear:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def before_update(self, optimizer: Optimizer, has_closure: bool) -> None:
        self.heard.append("before with closure" if has_closure else "before")

    def after_update(self, optimizer: Optimizer) -> None:
        self.heard.append("after")

    def closure_begins(self) -> None:
        self.heard.append("closure begins")

    def closure_ends(self) -> None:
        self.heard.append("closure ends")


def weights() -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return parameter


@pytest.fixture
def ear() -> Iterator[tuple[Ear, SGD]]:
    one, optimizer = Ear(), SGD([weights()], lr=0.1)
    before = dict(vars(optimizer))
    probe = OptimizerProbe([optimizer], one)
    probe.start()
    yield one, optimizer
    probe.stop()
    probe.stop()
    heard = len(one.heard)
    optimizer.step()
    assert len(one.heard) == heard
    assert set(vars(optimizer)) == set(before)


def test_a_step(ear: tuple[Ear, SGD]) -> None:
    one, optimizer = ear
    optimizer.step()
    assert one.heard == ["before", "after"]


def test_steps_of_another_optimizer_are_not_ours(ear: tuple[Ear, SGD]) -> None:
    one, _ = ear
    SGD([weights()], lr=0.1).step()
    assert one.heard == []


@pytest.mark.parametrize("keyword", [False, True])
def test_a_closure_is_passed_through(keyword: bool, ear: tuple[Ear, SGD]) -> None:
    one, optimizer = ear

    def closure() -> Tensor:
        one.heard.append("in it")
        return torch.tensor(3.0)

    result = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert result is not None and float(result) == 3.0
    assert one.heard == ["before with closure", "closure begins", "in it", "closure ends", "after"]


def test_a_closure_is_evaluated_more_than_once() -> None:
    one, parameter = Ear(), weights()
    optimizer = LBFGS([parameter], max_iter=3)
    probe = OptimizerProbe([optimizer], one)
    probe.start()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter - 3).pow(4).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    probe.stop()
    assert one.heard[0] == "before with closure" and one.heard[-1] == "after"
    assert one.heard.count("closure begins") == one.heard.count("closure ends") > 1


def test_a_scheduler_on_top(ear: tuple[Ear, SGD]) -> None:
    one, optimizer = ear
    scheduler = StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    assert one.heard == ["before", "after"]
    for name in ("step", "_opt_called", "initial_lr"):  # what the scheduler leaves there, to compare without it
        vars(optimizer).pop(name, None)


def test_an_exception_of_the_closure_is_the_users(ear: tuple[Ear, SGD]) -> None:
    _, optimizer = ear

    def closure() -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        optimizer.step(closure)
