r"""How the optimizer in use scales the gradient, and how sharp the loss may be before its steps overshoot.

Around a minimum of curvature lambda each of the optimizers here makes the iteration

    m <- b m + gradient,     theta <- theta - r P^-1 m,

heavy-ball momentum b with a step r and a preconditioner P (the identity for SGD). It stays bounded as long as the largest
eigenvalue of P^-1 H, which is that of P^-1/2 H P^-1/2, stays below ``factor / r``:

| optimizer | r | P | factor |
|---|---|---|---|
| SGD, momentum b, dampening t | lr (1 - t) | 1 | 2 (1 + b) |
| SGD, Nesterov | lr | 1 | 2 (1 + b) / (1 + 2 b) |
| Adam, AdamW | lr (1 - b1) | (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps) | 2 (1 + b1), so 38 / lr in all for b1 = 0.9 |
| RMSprop | lr | sqrt(v) + eps, or of the centred variance | 2 (1 + b) |
| Adagrad | lr / (1 + (t - 1) lr_decay) | sqrt(sum of squares) + eps | 2 |

Parameter groups with learning rates of their own are part of P. Weight decay that goes through the gradient (L2) adds to the
curvature; decoupled decay shrinks the weights beside it and is left out, as it is small. P is the one that the coming step will
use, from the optimizer's state and the present gradient; where the gradient is clipped before the step it is off by the last
gradient's share in it.

Sources: B. Polyak, 1964; J. Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, 2021;
J. Cohen et al., Adaptive Gradient Methods at the Edge of Stability, 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from cockpit_lite.errors import NotMeasured


@dataclass(frozen=True)
class StepScale:
    """How far the coming step goes along each element of the gradient.

    Attributes:
        factor: The iteration is stable while the largest eigenvalue of P^-1 H stays below ``factor / rate``.
        rate: r of the first parameter group.
        learning_rate: Its learning rate as the user set it.
        inverse: P^-1 by parameter name, a tensor of the parameter's shape or a number; parameters in no optimizer are missing.
        decay: Curvature that weight decay adds, by parameter name.
        adaptive: Whether P differs from element to element.
    """

    factor: float
    rate: float | Tensor
    learning_rate: float | Tensor
    inverse: Mapping[str, Tensor | float]
    decay: Mapping[str, float]
    adaptive: bool

    @property
    def limit(self) -> float | Tensor:
        """The largest eigenvalue of P^-1 H at which the steps do not yet overshoot."""
        return self.factor / self.rate

    @property
    def shift(self) -> float | None:
        """What weight decay adds to all eigenvalues where P is the identity, or None where it is not."""
        decays = set(self.decay.values())
        plain = not self.adaptive and len(decays) == 1 and all(_is_one(value) for value in self.inverse.values())
        return next(iter(decays)) if plain else None


@dataclass(frozen=True)
class _Group:
    """One parameter group: r, and P by parameter as a function of the state and the gradient (None: the identity)."""

    factor: float
    rate: float | Tensor
    preconditioner: Callable[[Mapping[str, Any], Tensor], Tensor] | None
    decay: float


def step_scale(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter], gradient: Mapping[str, Tensor]
) -> StepScale:
    """Return how the coming step scales the gradient.

    Args:
        optimizers: All that step together.
        parameters: By name.
        gradient: The present one, by name; a parameter without one does not move.

    Raises:
        NotMeasured: if an optimizer is not one of those above, or the groups differ in more than the learning rate.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [
        (optimizer, settings, _describe(optimizer, settings)) for optimizer in optimizers for settings in optimizer.param_groups
    ]
    if len({group.factor for _, _, group in groups}) > 1:
        raise NotMeasured("the parameter groups differ in momentum, so there is no single stability limit")
    # A learning rate that is a tensor is not looked at: that would wait for the device.
    moving = [(settings, group) for _, settings, group in groups if isinstance(group.rate, Tensor) or group.rate > 0]
    if not moving:
        raise NotMeasured("the learning rate is zero")
    first, learning_rate = moving[0][1], moving[0][0]["lr"]
    inverse: dict[str, Tensor | float] = {}
    decay: dict[str, float] = {}
    for optimizer, settings, group in groups:
        for parameter in settings["params"]:
            name = names.get(id(parameter))
            if name is None or name not in gradient:
                continue
            inverse[name], decay[name] = group.rate / first.rate, group.decay
            if group.preconditioner is not None:
                slope = gradient[name].detach() + group.decay * parameter.detach()
                inverse[name] = inverse[name] / group.preconditioner(optimizer.state.get(parameter, {}), slope)
    if not inverse:
        raise NotMeasured("no parameter of the optimizer has a gradient")
    adaptive = any(group.preconditioner is not None for _, _, group in groups)
    return StepScale(first.factor, first.rate, learning_rate, inverse, decay, adaptive)


def _describe(optimizer: Optimizer, settings: Mapping[str, Any]) -> _Group:
    describe = _KNOWN.get(type(optimizer))
    if describe is None:
        raise NotMeasured(f"no stability limit is known for the optimizer {type(optimizer).__name__}")
    if settings.get("maximize"):
        raise NotMeasured("the optimizer climbs (maximize=True)")
    return describe(settings)


def _sgd(settings: Mapping[str, Any]) -> _Group:
    momentum, dampening = float(settings["momentum"]), float(settings["dampening"])
    factor = 2 * (1 + momentum) / (1 + 2 * momentum if settings["nesterov"] else 1)
    # Without momentum torch ignores the dampening.
    rate = settings["lr"] * (1 - dampening) if momentum else settings["lr"]
    return _Group(factor, rate, None, float(settings["weight_decay"]))


def _adam(settings: Mapping[str, Any]) -> _Group:
    beta_1, beta_2 = (float(beta) for beta in settings["betas"])

    def preconditioner(state: Mapping[str, Any], slope: Tensor) -> Tensor:
        count = _count(state) + 1
        squares = state.get("exp_avg_sq", torch.zeros_like(slope)) * beta_2 + slope.square() * (1 - beta_2)
        if settings["amsgrad"] and "max_exp_avg_sq" in state:
            squares = torch.maximum(squares, state["max_exp_avg_sq"])
        return ((squares / (1 - beta_2**count)).sqrt() + settings["eps"]) * (1 - beta_1**count)

    decoupled = settings.get("decoupled_weight_decay", False)
    return _Group(2 * (1 + beta_1), settings["lr"] * (1 - beta_1), preconditioner, 0.0 if decoupled else settings["weight_decay"])


def _adamw(settings: Mapping[str, Any]) -> _Group:
    return _adam({**settings, "decoupled_weight_decay": True})


def _rmsprop(settings: Mapping[str, Any]) -> _Group:
    alpha = float(settings["alpha"])

    def preconditioner(state: Mapping[str, Any], slope: Tensor) -> Tensor:
        squares = state.get("square_avg", torch.zeros_like(slope)) * alpha + slope.square() * (1 - alpha)
        if settings["centered"]:
            mean = state.get("grad_avg", torch.zeros_like(slope)) * alpha + slope * (1 - alpha)
            squares = (squares - mean.square()).clamp(min=0)
        return squares.sqrt() + settings["eps"]

    return _Group(2 * (1 + float(settings["momentum"])), settings["lr"], preconditioner, float(settings["weight_decay"]))


def _adagrad(settings: Mapping[str, Any]) -> _Group:
    lr_decay = float(settings["lr_decay"])

    def preconditioner(state: Mapping[str, Any], slope: Tensor) -> Tensor:
        # The count of steps is of the parameter, so the rate that falls with it belongs here.
        total = state.get("sum", torch.full_like(slope, float(settings["initial_accumulator_value"]))) + slope.square()
        return (total.sqrt() + settings["eps"]) * (1 + _count(state) * lr_decay)

    return _Group(2.0, settings["lr"], preconditioner, float(settings["weight_decay"]))


# Of subclasses nothing is known: they may do anything.
_KNOWN: dict[type[Optimizer], Callable[[Mapping[str, Any]], _Group]] = {
    SGD: _sgd,
    Adam: _adam,
    AdamW: _adamw,
    RMSprop: _rmsprop,
    Adagrad: _adagrad,
}


def _count(state: Mapping[str, Any]) -> float | Tensor:
    """Return the steps so far: a number where the device need not be asked, so that powers are in double precision."""
    count = state.get("step", 0)
    return float(count) if not isinstance(count, Tensor) or count.is_cpu else count


def _is_one(value: Tensor | float) -> bool:
    return isinstance(value, float) and value == 1.0
