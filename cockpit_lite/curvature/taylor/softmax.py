"""Softmax and its logarithm.

With p the probabilities and m = sum p x', the logarithm moves by l' = x' - m and

    l'' = x'' - sum p (x'' + l'^2),

and the probabilities by p' = p l' and p'' = p (l'' + l'^2).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import Move, pair_of


@rule(aten._softmax.default, aten._safe_softmax.default)
def softmax(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return probabilities along one axis."""
    result = func(*args, **kwargs)
    first, second = pair_of(args[0])
    assert first is not None
    axis = args[1]
    # Rows like those of autograd's own derivative: where a probability is zero, whatever goes in (of -inf) stays without effect.
    move = aten._softmax_backward_data(first.to(result), result, axis, result.dtype)
    inside = (first.to(result) - (result * first).sum(axis, keepdim=True)).square_()
    if second is not None:
        inside += second
    return with_moves(result, move, aten._softmax_backward_data(inside, result, axis, result.dtype))


@rule(aten._log_softmax.default)
def log_softmax(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return logarithms of probabilities along one axis."""
    result = func(*args, **kwargs)
    first, second = pair_of(args[0])
    assert first is not None
    axis, shares = args[1], result.exp()
    move = first - (shares * first).sum(axis, keepdim=True)
    inside = move.square()
    if second is not None:
        inside += second
    mean = (shares * inside).sum(axis, keepdim=True)
    return with_moves(result, move, -mean.expand_as(result) if second is None else second - mean)


@rule(aten.logsumexp.default)
def logsumexp(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the logarithm of a sum of exponentials along some axes."""
    value, axes, *rest = args
    keep = bool(rest and rest[0])
    result = func(*args, **kwargs)
    first, second = pair_of(value)
    assert first is not None
    shares = (value - (result if keep else func(value, axes, True))).exp()
    mean = (shares * first).sum(axes, keepdim=True)
    inside = (first - mean).square_()
    if second is not None:
        inside += second
    moves: list[Move] = [(shares * first).sum(axes, keepdim=keep), (shares * inside).sum(axes, keepdim=keep)]
    return with_moves(result, *moves)
