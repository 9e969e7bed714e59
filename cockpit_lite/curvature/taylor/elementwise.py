"""Functions of one number, element by element: y = f(x) moves by y' = f'x' and y'' = f'x'' + f''x'^2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import NoForwardMode, moves_of, take, with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import Move, add, pair_of, spread

#: Takes the argument, the result and further arguments; returns f' and f'', for f'' None if it is zero.
Derivatives = Callable[..., tuple[Tensor, Tensor | None]]

_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)


def _apply(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], derivatives: Derivatives) -> Tensor:
    value, *options = args
    if any(isinstance(option, Tensor) and moves_of(option) is not None for option in options):
        raise NoForwardMode(f"it is not known how {func} moves with its second argument")
    if value.is_complex():
        raise NoForwardMode(f"it is not known how {func} moves with complex numbers")
    result = func(*args, **kwargs)
    slope, bend = derivatives(value, result, *options, **kwargs)
    moves = take(value)
    assert moves is not None
    first, second = moves.first, moves.second
    if bend is not None:
        bend = (bend * first).mul_(first)
        second = bend if second is None else bend.addcmul_(slope, second)
    elif second is not None:
        second = second.mul_(slope) if moves.own else slope * second
    return with_moves(result, first.mul_(slope) if moves.own else slope * first, second, own=True)


def elementwise(*operations: OpOverload | None) -> Callable[[Derivatives], Derivatives]:
    """Make a function that returns f' and f'' the rule of these operations."""

    def enter(derivatives: Derivatives) -> Derivatives:
        rule(*operations)(lambda func, args, kwargs: _apply(func, args, kwargs, derivatives))
        return derivatives

    return enter


@elementwise(aten.abs.default)
def _abs(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return value.sign(), None


@elementwise(aten.exp.default)
def _exp(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return result, result


@elementwise(aten.exp2.default)
def _exp2(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = result * math.log(2)
    return slope, slope * math.log(2)


@elementwise(aten.expm1.default)
def _expm1(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return result + 1, result + 1


@elementwise(aten.log.default)
def _log(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = value.reciprocal()
    return slope, -slope.square()


@elementwise(aten.log2.default)
def _log2(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = value.reciprocal() / math.log(2)
    return slope, -slope / value


@elementwise(aten.log1p.default)
def _log1p(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = (value + 1).reciprocal()
    return slope, -slope.square()


@elementwise(aten.sin.default)
def _sin(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return value.cos(), -result


@elementwise(aten.cos.default)
def _cos(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return -value.sin(), -result


@elementwise(aten.tanh.default)
def _tanh(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = 1 - result.square()
    return slope, -2 * result * slope


@elementwise(aten.atan.default)
def _atan(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = (1 + value.square()).reciprocal()
    return slope, -2 * value * slope.square()


@elementwise(aten.erf.default)
def _erf(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = _TWO_OVER_ROOT_PI * torch.exp(-value.square())
    return slope, -2 * value * slope


@elementwise(aten.sigmoid.default)
def _sigmoid(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = result - result.square()
    return slope, slope * (1 - 2 * result)


@elementwise(aten.silu.default)
def _silu(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    gate = torch.sigmoid(value)
    own = gate - gate.square()
    return gate + value * own, own * (2 + value * (1 - 2 * gate))


@elementwise(aten.mish.default)
def _mish(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    bent, gate = torch.nn.functional.softplus(value).tanh(), torch.sigmoid(value)
    flat = 1 - bent.square()
    return bent + value * flat * gate, flat * gate * (2 + value * (1 - gate - 2 * bent * gate))


@elementwise(aten.softplus.default)
def _softplus(value: Tensor, result: Tensor, beta: float = 1, threshold: float = 20) -> tuple[Tensor, Tensor | None]:
    linear, gate = value * beta > threshold, torch.sigmoid(value * beta)
    return gate.masked_fill(linear, 1), (beta * (gate - gate.square())).masked_fill(linear, 0)


@elementwise(aten.elu.default)
def _elu(
    value: Tensor, result: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1
) -> tuple[Tensor, Tensor | None]:
    below = torch.exp(value * input_scale).mul_(alpha * scale * input_scale)
    up = value > 0
    return torch.where(up, scale, below), (below * input_scale).masked_fill(up, 0)


@elementwise(aten.celu.default)
def _celu(value: Tensor, result: Tensor, alpha: float = 1) -> tuple[Tensor, Tensor | None]:
    return _elu(value, result, alpha, 1, 1 / alpha)


@elementwise(aten.hardswish.default)
def _hardswish(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    inside = (value > -3) & (value < 3)
    return torch.where(inside, value / 3 + 0.5, (value >= 3).to(value)), inside.to(value) / 3


@elementwise(aten.hardtanh.default)
def _hardtanh(value: Tensor, result: Tensor, low: float = -1, high: float = 1) -> tuple[Tensor, Tensor | None]:
    return ((value > low) & (value < high)).to(value), None


@elementwise(aten.leaky_relu.default)
def _leaky_relu(value: Tensor, result: Tensor, negative_slope: float = 0.01) -> tuple[Tensor, Tensor | None]:
    return torch.where(value > 0, torch.ones_like(value), negative_slope), None


@elementwise(aten.clamp.default)
def _clamp(value: Tensor, result: Tensor, low: float | None = None, high: float | None = None, **names: Any) -> Any:
    low, high = names.get("min", low), names.get("max", high)
    inside = torch.ones_like(value, dtype=torch.bool)
    if low is not None:
        inside &= value >= low
    if high is not None:
        inside &= value <= high
    return inside.to(value), None


@elementwise(aten.clamp_min.default)
def _clamp_min(value: Tensor, result: Tensor, low: float) -> tuple[Tensor, Tensor | None]:
    return (value >= low).to(value), None


@elementwise(aten.clamp_max.default)
def _clamp_max(value: Tensor, result: Tensor, high: float) -> tuple[Tensor, Tensor | None]:
    return (value <= high).to(value), None


@elementwise(aten.threshold.default)
def _threshold(value: Tensor, result: Tensor, threshold: float, other: float) -> tuple[Tensor, Tensor | None]:
    return (value > threshold).to(value), None


@elementwise(aten.softshrink.default)
def _softshrink(value: Tensor, result: Tensor, limit: float = 0.5) -> tuple[Tensor, Tensor | None]:
    return (result != 0).to(value), None


@elementwise(aten.hardshrink.default)
def _hardshrink(value: Tensor, result: Tensor, limit: float = 0.5) -> tuple[Tensor, Tensor | None]:
    return (result != 0).to(value), None


@elementwise(aten.nan_to_num.default)
def _nan_to_num(value: Tensor, result: Tensor, *numbers: float | None) -> tuple[Tensor, Tensor | None]:
    return value.isfinite().to(value), None


@elementwise(aten.sinh.default)
def _sinh(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return value.cosh(), result


@elementwise(aten.cosh.default)
def _cosh(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return value.sinh(), result


@elementwise(aten.sqrt.default)
def _sqrt(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = 0.5 / result
    return slope, -0.5 * slope / value


@elementwise(aten.rsqrt.default)
def _rsqrt(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = -0.5 * result / value
    return slope, -1.5 * slope / value


@elementwise(aten.reciprocal.default)
def _reciprocal(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    slope = -result.square()
    return slope, -2 * result * slope


@elementwise(aten.square.default)
def _square(value: Tensor, result: Tensor) -> tuple[Tensor, Tensor | None]:
    return 2 * value, torch.full_like(value, 2)


@elementwise(aten.pow.Tensor_Scalar)
def _power(value: Tensor, result: Tensor, exponent: float) -> tuple[Tensor, Tensor | None]:
    if exponent == 0:
        return torch.zeros_like(value), None
    if exponent == 1:
        return torch.ones_like(value), None
    return exponent * value ** (exponent - 1), exponent * (exponent - 1) * value ** (exponent - 2)


@rule(aten.relu.default)
def rectified(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return max(x, 0), which bends nowhere but in its kink."""
    result = func(*args)
    moves = take(args[0])
    assert moves is not None
    if moves.own:
        found = (
            None if move is None else aten.threshold_backward.grad_input(move, result, 0, grad_input=move) for move in moves[:2]
        )
    else:
        found = (None if move is None else aten.threshold_backward(move, result, 0) for move in moves[:2])
    return with_moves(result, *found, own=True)


@rule(aten.gelu.default)
def gelu(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return x times the normal distribution function at x, or its approximation by a tanh."""
    value = args[0]
    first, second = pair_of(value)
    assert first is not None
    move = aten.gelu_backward(first, value, **kwargs)
    squared = value.square()
    if kwargs.get("approximate", "none") == "none":
        # phi(x) (2 - x^2)
        bend = torch.exp(squared * -0.5).mul_(2 - squared).mul_(1 / math.sqrt(2 * math.pi))
    else:
        inner = torch.tanh(math.sqrt(2 / math.pi) * value * (1 + 0.044715 * squared))
        slope, curve = math.sqrt(2 / math.pi) * (1 + 0.134145 * squared), math.sqrt(2 / math.pi) * 0.26829 * value
        bend = (1 - inner.square()) * (slope + 0.5 * value * (curve - 2 * inner * slope.square()))
    bend.mul_(first).mul_(first)
    if second is not None:
        bend += aten.gelu_backward(second, value, **kwargs)
    return with_moves(func(*args, **kwargs), move, bend)


@rule(aten.log_sigmoid_forward.default)
def log_sigmoid(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the sigmoid: f' = 1 - s, f'' = -s (1 - s), s the sigmoid."""
    result, buffer = func(*args)
    first, second = pair_of(args[0])
    assert first is not None
    down = torch.sigmoid(-args[0])
    bend = (down.square() - down).mul_(first).mul_(first)
    return with_moves(result, down * first, bend if second is None else bend.addcmul_(down, second)), buffer


@rule(aten._prelu_kernel.default)
def prelu(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return x where it is positive and w x where it is not."""
    value, weight = args
    result = func(value, weight)
    (value1, value2), (weight1, weight2) = pair_of(value), pair_of(weight)
    up = value > 0
    slope = torch.where(up, torch.ones_like(value), weight)
    below = value.masked_fill(up, 0)
    first = add(None if value1 is None else slope * value1, None if weight1 is None else below * weight1)
    mixed = None if value1 is None or weight1 is None else (2 * weight1 * value1).masked_fill(up, 0)
    second = add(None if value2 is None else slope * value2, None if weight2 is None else below * weight2)
    return with_moves(result, first, add(mixed, second))


@rule(aten.logaddexp.default)
def logaddexp(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return y = log(e^a + e^b), p the share of e^a: y' = p a' + (1 - p) b', and y'' the same plus p (1 - p) (a' - b')^2."""
    left, right = args
    result = func(left, right)
    share = torch.sigmoid(left - right)
    (left1, left2), (right1, right2) = pair_of(left), pair_of(right)
    moves = [
        add(None if mine is None else share * mine, None if other is None else (1 - share) * other)
        for mine, other in ((left1, right1), (left2, right2))
    ]
    apart = add(left1, None if right1 is None else -right1)
    assert apart is not None
    return with_moves(result, spread(moves[0], result), add(share * (1 - share) * apart.square(), moves[1]))


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def between(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a + w (b - a), with a weight that is a constant."""
    left, right, weight = args
    if isinstance(weight, Tensor) and moves_of(weight) is not None:
        raise NoForwardMode("the weight of an interpolation moves")
    result = func(left, right, weight)
    moves = []
    for mine, other in zip(pair_of(left), pair_of(right), strict=True):
        moves.append(
            spread(add(None if mine is None else mine * (1 - weight), None if other is None else other * weight), result)
        )
    return with_moves(result, *moves)


@rule(aten.maximum.default, aten.minimum.default)
def extreme(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the greater (smaller) of two; where they are equal, half of each moves it, as autograd has it."""
    left, right = args
    result = func(left, right)
    share = torch.where(left == right, 0.5, ((left > right) == (func is aten.maximum.default)).to(result))
    moves: list[Move] = []
    for mine, other in zip(pair_of(left), pair_of(right), strict=True):
        part = add(None if mine is None else share * mine, None if other is None else (1 - share) * other)
        moves.append(spread(part, result))
    return with_moves(result, *moves)
