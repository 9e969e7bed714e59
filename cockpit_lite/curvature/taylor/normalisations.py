r"""Normalisations, and the norms that they divide by.

With z = (x - mean) r, r = 1 / sqrt(variance + eps), u = (x' - mean') r and q = (x'' - mean'') r, and <.> the mean over what is
normalised:

    a   = <z u>                                              (r' = -r a)
    z'  = u - a z
    z'' = q - 2 a u + (3 a^2 - <u^2> - <z q>) z

Then comes y = w z + b, a product. With given statistics the normalisation is linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import NoForwardMode, take, with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import Move, add, pair_of


def _normalised(z: Tensor, u: Tensor, q: Tensor | None, axes: list[int]) -> tuple[Tensor, Tensor]:
    """Return z' and z''; u and q are overwritten."""
    a = (z * u).mean(axes, keepdim=True)
    factor = 3 * a.square() - u.square().mean(axes, keepdim=True)
    if q is None:
        second = u * (-2 * a)
    else:
        factor -= (z * q).mean(axes, keepdim=True)
        second = q.addcmul_(u, -2 * a)
    return u.addcmul_(a, z, value=-1), second.addcmul_(factor, z)


def _scaled(z: Tensor, first: Move, second: Move, weight: Any, bias: Any, shape: Sequence[int]) -> tuple[Move, Move]:
    """Return how ``w z + b`` moves; the moves of z are overwritten."""
    (weight1, weight2), (bias1, bias2) = pair_of(weight), pair_of(bias)
    shaped = [None if value is None else value.reshape(shape) for value in (weight, weight1, weight2, bias1, bias2)]
    weight, weight1, weight2, bias1, bias2 = shaped
    if weight is not None:
        mixed = None if weight1 is None or first is None else first * (2 * weight1)
        first, second = (None if move is None else move.mul_(weight) for move in (first, second))
        second = add(mixed, second)
        if weight1 is not None:
            first = z * weight1 if first is None else first.addcmul_(z, weight1)
        if weight2 is not None:
            second = z * weight2 if second is None else second.addcmul_(z, weight2)
    moves = []
    for move, other in ((first, bias1), (second, bias2)):
        total = add(move, other)
        moves.append(total if total is None else total.expand_as(z))
    return moves[0], moves[1]


def _centred(move: Move, scale: Tensor, axes: list[int], own: bool = False) -> Move:
    """Return ``(move - mean) scale``, in the same memory if it is one's own."""
    if move is None:
        return None
    mean = move.mean(axes, keepdim=True)
    return (move.sub_(mean) if own else move - mean).mul_(scale)


@rule(aten.native_layer_norm.default)
def layer_norm(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return what is normalised over the last axes."""
    inputs, shape, weight, bias, _ = args
    result, mean, scale = func(*args)
    axes = list(range(-len(shape), 0))
    z = (inputs - mean).mul_(scale)
    first, second = (_centred(move, scale, axes) for move in pair_of(inputs))
    if first is not None:
        first, second = _normalised(z, first, second, axes)
    return with_moves(result, *_scaled(z, first, second, weight, bias, shape)), mean, scale


@rule(aten._fused_rms_norm.default)
def rms_norm(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return what is divided by its root mean square over the last axes."""
    inputs, shape, weight, *_ = args
    result, scale = func(*args)
    axes = list(range(-len(shape), 0))
    z = inputs * scale
    first, second = (None if move is None else move * scale for move in pair_of(inputs))
    if first is not None:
        first, second = _normalised(z, first, second, axes)
    return with_moves(result, *_scaled(z, first, second, weight, None, shape)), scale


@rule(aten.native_group_norm.default)
def group_norm(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return what is normalised over the channels of a group and the places of a sample."""
    inputs, weight, bias, count, channels, _, groups, _ = args
    result, mean, scale = func(*args)
    grouped, by_group = (count, groups, -1), (count, groups, 1)
    z = (inputs.reshape(grouped) - mean.view(by_group)).mul_(scale.view(by_group))
    first, second = (
        None if move is None else _centred(move.reshape(grouped), scale.view(by_group), [-1]) for move in pair_of(inputs)
    )
    if first is not None:
        first, second = _normalised(z, first, second, [-1])
    flat = (count, channels, -1)
    first, second = (None if move is None else move.view(flat) for move in (first, second))
    moves = _scaled(z.view(flat), first, second, weight, bias, (channels, 1))
    return with_moves(result, *(None if move is None else move.reshape(inputs.shape) for move in moves)), mean, scale


@rule(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_no_update.default,
)
def batch_norm(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return what is normalised over the batch, or by running statistics."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    inputs, weight, bias = given["input"], given["weight"], given["bias"]
    eps = given.get("eps", given.get("epsilon"))
    by_batch = given.get("training", "no_stats" in str(func) or "with_update" in str(func))
    if any(pair_of(given.get(name))[0] is not None for name in ("running_mean", "running_var")):
        raise NoForwardMode("running statistics move")
    axes, shape = [0, *range(2, inputs.dim())], (-1, *[1] * (inputs.dim() - 2))
    results = func(*args, **kwargs)
    mean, scale = results[1:3] if by_batch else (given["running_mean"], (given["running_var"] + eps).rsqrt())
    scale = scale.view(shape)
    z = (inputs - mean.view(shape)).mul_(scale)
    moves, first, second = take(inputs), None, None
    if moves is not None and by_batch:
        first, second = (_centred(move, scale, axes, moves.own) for move in moves[:2])
        assert first is not None
        first, second = _normalised(z, first, second, axes)
    elif moves is not None:
        first, second = (None if move is None else move * scale for move in moves[:2])
    own = first is not None
    return (with_moves(results[0], *_scaled(z, first, second, weight, bias, shape), own=own), *results[1:])


@rule(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim, aten.norm.Scalar)
def euclidean_norm(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return y = ||x||: y' = <x, x'> / y and y'' = (<x', x'> + <x, x''> - y'^2) / y; zero where y is, as autograd has it."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    order = given.get("ord", given.get("p", 2))
    if order not in (None, 2, 2.0) or given["self"].is_complex():
        raise NoForwardMode(f"it is not known how a norm of order {order} moves")
    value, axes, keep = given["self"], given.get("dim"), given.get("keepdim", False)
    axes = list(range(value.dim())) if axes is None else axes
    first, second = pair_of(value)
    assert first is not None
    result = func(*args, **kwargs)
    slope, bend = value * first, first.square()
    if second is not None:
        bend.addcmul_(value, second)
    zero = result == 0
    move = (slope.sum(axes, keepdim=keep) / result).masked_fill_(zero, 0)
    return with_moves(result, move, ((bend.sum(axes, keepdim=keep) - move.square()) / result).masked_fill_(zero, 0))


@rule(aten.var.correction, aten.std.correction)
def spread(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the variance v = sum c^2 / n, c centred, or its root s: s' = v' / 2s and s'' = (v'' / 2 - s'^2) / s."""
    value, axes = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    keep, correction = kwargs.get("keepdim", False), kwargs.get("correction")
    axes = axes or list(range(value.dim()))
    first, second = pair_of(value)
    assert first is not None
    if value.is_complex():
        raise NoForwardMode("it is not known how the variance of complex numbers moves")
    result = func(*args, **kwargs)
    count = value.numel() // max(result.numel(), 1) - (1 if correction is None else correction)
    centred, moved = value - value.mean(axes, keepdim=True), first - first.mean(axes, keepdim=True)
    move, bend = (centred * moved).mul_(2 / count), moved.square().mul_(2 / count)
    if second is not None:
        bend.addcmul_(centred, second, value=2 / count)  # what is centred has no product with a mean
    move, bend = move.sum(axes, keepdim=keep), bend.sum(axes, keepdim=keep)
    if func is aten.std.correction:
        move = move / (2 * result)
        bend = (bend / 2 - move.square()) / result
    return with_moves(result, move, bend)
