from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.step_scale import step_scale
from tests.optimizers import Lion

# Second moments that no gradient of the test can move: the preconditioner stands still, as the limit takes it to.
STILL = 1 - 1e-12


def adam(kind: type[Adam], **options: Any) -> Callable[[nn.Parameter, float], Optimizer]:
    def make(weight: nn.Parameter, rate: float) -> Optimizer:
        optimizer = kind([weight], lr=rate, betas=(0.9, STILL), eps=0.25, **options)
        squares = torch.tensor([4.0, 1.0], dtype=torch.float64)
        state = {"step": torch.tensor(1e15), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": squares}
        optimizer.state[weight].update(state | ({"max_exp_avg_sq": 4 * squares} if options.get("amsgrad") else {}))
        return optimizer

    return make


def rmsprop(momentum: float, centered: bool) -> Callable[[nn.Parameter, float], Optimizer]:
    def make(weight: nn.Parameter, rate: float) -> Optimizer:
        optimizer = RMSprop([weight], lr=rate, alpha=STILL, momentum=momentum, centered=centered)
        state = {"step": torch.tensor(1.0), "square_avg": torch.tensor([4.0, 1.0], dtype=torch.float64)}
        state |= {"momentum_buffer": torch.zeros_like(weight)} if momentum else {}
        state |= {"grad_avg": torch.full_like(weight, 0.5)} if centered else {}
        optimizer.state[weight].update(state)
        return optimizer

    return make


def sgd(**options: Any) -> Callable[[nn.Parameter, float], Optimizer]:
    return lambda weight, rate: SGD([weight], lr=rate, **options)


OPTIMIZERS: dict[str, Callable[[nn.Parameter, float], Optimizer]] = {
    "plain": sgd(),
    "momentum": sgd(momentum=0.9),
    "dampening": sgd(momentum=0.5, dampening=0.3),
    "dampening without momentum": sgd(dampening=0.3),
    "nesterov": sgd(momentum=0.9, nesterov=True),
    "weight decay": sgd(weight_decay=3.0),
    "adam": adam(Adam),
    "adam with L2": adam(Adam, weight_decay=2.0),
    "amsgrad": adam(Adam, amsgrad=True),
    "adamw": adam(AdamW, weight_decay=0.0),
    "rmsprop": rmsprop(0.0, False),
    "rmsprop with momentum": rmsprop(0.7, False),
    "centred rmsprop": rmsprop(0.0, True),
    "adagrad": lambda weight, rate: Adagrad([weight], lr=rate, initial_accumulator_value=1e16),
}

CURVATURE = torch.tensor([[5.0, 1.0], [1.0, 2.0]], dtype=torch.float64)


def weights() -> nn.Parameter:
    return nn.Parameter(torch.tensor([1e-3, -2e-3], dtype=torch.float64))


def sharpness_over_limit(optimizer: Optimizer, weight: nn.Parameter) -> float:
    """The largest eigenvalue of P^-1 (H + decay), dense, over the limit."""
    scale = step_scale([optimizer], {"w": weight}, {"w": CURVATURE @ weight.detach()})
    inverse = torch.as_tensor(scale.inverse["w"], dtype=torch.float64).expand(2)
    matrix = torch.diag(inverse) @ (CURVATURE + scale.decay["w"] * torch.eye(2, dtype=torch.float64))
    return float(torch.linalg.eigvals(matrix).real.max() / scale.limit)


def grows(make: Callable[[nn.Parameter, float], Optimizer], rate: float) -> bool:
    weight = weights()
    optimizer = make(weight, rate)
    begin = weight.detach().norm()
    for _ in range(2_000):
        optimizer.zero_grad()
        (0.5 * weight @ CURVATURE @ weight).backward()
        optimizer.step()
        if weight.detach().norm() > 100 * begin:
            return True
    return False


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_limit_is_where_the_real_optimizer_diverges(name: str) -> None:
    make, low, high = OPTIMIZERS[name], 1e-4, 1e10
    for _ in range(80):  # find the learning rate at which we say that it begins
        middle = (low * high) ** 0.5
        weight = weights()
        low, high = (middle, high) if sharpness_over_limit(make(weight, middle), weight) < 1 else (low, middle)
    assert not grows(make, 0.98 * low)
    assert grows(make, 1.02 * low)


def test_adam_with_the_usual_momentum_has_the_limit_38() -> None:
    weight = weights()
    scale = step_scale([Adam([weight], lr=0.01)], {"w": weight}, {"w": torch.ones_like(weight)})
    assert scale.limit == pytest.approx(38 / 0.01)
    assert scale.adaptive
    assert scale.shift is None


def test_one_learning_rate_for_all_is_no_preconditioner() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = SGD([{"params": [first]}, {"params": [second], "lr": 0.1}], lr=0.1, weight_decay=0.5)
    assert step_scale([optimizer], {"a": first, "b": second}, {"a": first, "b": second}).shift == 0.5


@pytest.mark.parametrize("kind", [Adam, AdamW, RMSprop, Adagrad])
def test_the_preconditioner_is_the_one_that_the_coming_step_uses(kind: type[Optimizer]) -> None:
    """Without momentum the step is -r P^-1 G, from the first step on."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    options: dict[str, Any] = {"betas": (0.0, 0.9), "weight_decay": 0.0} if kind in (Adam, AdamW) else {}
    optimizer = kind([weight], lr=0.01, **options)
    for _ in range(4):
        optimizer.zero_grad()
        (weight**4).sum().backward()
        assert weight.grad is not None
        scale = step_scale([optimizer], {"w": weight}, {"w": weight.grad})
        before = weight.detach().clone()
        optimizer.step()
        expected = -scale.rate * scale.inverse["w"] * weight.grad
        torch.testing.assert_close(weight.detach() - before, expected)


def test_groups_with_their_own_learning_rates_are_preconditioned() -> None:
    first, second, third = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = SGD([{"params": [first], "lr": 0.0}, {"params": [second]}, {"params": [third], "lr": 0.05}], lr=0.1)
    gradient = {name: torch.ones(2) for name in "abc"}
    scale = step_scale([optimizer], {"a": first, "b": second, "c": third}, gradient)
    assert scale.inverse == {"a": 0.0, "b": 1.0, "c": 0.5}
    assert (scale.limit, scale.learning_rate) == (20.0, 0.1)
    assert scale.shift is None


def test_what_has_no_gradient_or_no_optimizer_does_not_move() -> None:
    first, second, third = (nn.Parameter(torch.ones(2)) for _ in range(3))
    scale = step_scale([SGD([first, second], lr=0.1)], {"a": first, "b": second, "c": third}, {"a": first, "c": third})
    assert set(scale.inverse) == {"a"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda w: LBFGS([w]), "no stability limit is known for the optimizer LBFGS"),
        (lambda w: Lion([w]), "no stability limit is known for the optimizer Lion"),
        (lambda w: SGD([w], lr=0.1, maximize=True), "the optimizer climbs"),
        (lambda w: SGD([w], lr=0.0), "the learning rate is zero"),
        (lambda w: SGD([nn.Parameter(torch.ones(1))], lr=0.1), "no parameter of the optimizer has a gradient"),
        (
            lambda w: SGD([{"params": [w]}, {"params": [nn.Parameter(torch.ones(1))], "momentum": 0.5}], lr=0.1),
            "differ in momentum",
        ),
    ],
)
def test_where_there_is_no_limit_there_is_a_reason(make: Callable[[nn.Parameter], Optimizer], reason: str) -> None:
    weight = weights()
    with pytest.raises(NotMeasured, match=reason):
        step_scale([make(weight)], {"w": weight}, {"w": torch.ones(2)})
