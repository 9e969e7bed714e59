"""Products: y = a b moves by y' = a'b + ab' and y'' = a''b + 2a'b' + ab''."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import NoForwardMode, with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import Move, add, pair_of, spread


def product_moves(multiply: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> tuple[Move, Move]:
    """Return how ``multiply(left, right)`` moves, which is linear in each."""
    (left1, left2), (right1, right2) = pair_of(left), pair_of(right)
    first = [None if left1 is None else multiply(left1, right), None if right1 is None else multiply(left, right1)]
    second = [None if left2 is None else multiply(left2, right), None if right2 is None else multiply(left, right2)]
    if left1 is not None and right1 is not None:
        second.append(multiply(left1, right1).mul_(2))
    return _gather(first), _gather(second)


def _gather(parts: list[Tensor | None]) -> Move:
    """Return the sum of fresh tensors of one shape, of which the first one is overwritten."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    for part in found[1:]:
        found[0].add_(part)
    return found[0]


@rule(aten.mul.Tensor, aten.mul.Scalar)
def multiplied(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a product element by element."""
    left, right = args
    result = func(left, right)
    if left is right:
        first, second = pair_of(left)
        assert first is not None
        bend = first * first
        if second is not None:
            bend.addcmul_(left, second)
        return with_moves(result, (left * first).mul_(2), bend.mul_(2))
    (left1, left2), (right1, right2) = pair_of(left), pair_of(right)
    first, second = _part(left1, right, result), _part(left2, right, result)
    if right1 is not None:
        first = _part(right1, left, result) if first is None else first.addcmul_(left, right1)
        if right2 is not None:
            second = _part(right2, left, result) if second is None else second.addcmul_(left, right2)
        if left1 is not None:
            second = _part(left1 * 2, right1, result) if second is None else second.addcmul_(left1, right1, value=2)
    return with_moves(result, first, second)


def _part(move: Move, other: Any, result: Tensor) -> Move:
    if move is None:
        return None
    part = move * other
    return part if part.shape == result.shape else part.expand_as(result).contiguous()


@rule(aten.div.Tensor, aten.div.Scalar)
def divided(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a quotient y = a / b: y' = (a' - y b') / b and y'' = (a'' - 2 y' b' - y b'') / b."""
    above, below = args
    result = func(above, below)
    (above1, above2), (below1, below2) = pair_of(above), pair_of(below)
    if below1 is None:
        return with_moves(result, *(None if move is None else spread(move / below, result) for move in (above1, above2)))
    rest = result * below1
    first = (rest.neg_() if above1 is None else above1 - rest) / below
    rest = first * below1 * 2
    if below2 is not None:
        rest += result * below2
    return with_moves(result, first, (rest.neg_() if above2 is None else above2 - rest) / below)


@rule(aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default, aten.vdot.default)
def matrix_product(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a product of matrices."""
    left, right = args
    if func is aten.vdot.default and left.is_complex():
        raise NoForwardMode("it is not known how an inner product of complex numbers moves")
    result = func(left, right)
    (left1, left2), (right1, right2) = pair_of(left), pair_of(right)
    # Accumulated where it is: a sum of products of matrices takes no room of its own.
    first = _accumulated(func, [(left1, right, 1), (left, right1, 1)])
    second = _accumulated(func, [(left2, right, 1), (left1, right1, 2), (left, right2, 1)])
    return with_moves(result, first, second)


_ADDING = {aten.mm.default: torch.Tensor.addmm_, aten.bmm.default: torch.Tensor.baddbmm_, aten.mv.default: torch.Tensor.addmv_}


def _accumulated(func: OpOverload, products: list[tuple[Move, Move, int]], start: Move = None) -> Move:
    """Return the sum of ``factor * left @ right`` over those whose sides are known, and of ``start``, which is overwritten."""
    total = start
    adding = _ADDING.get(func)
    for left, right, factor in products:
        if left is None or right is None:
            continue
        if total is not None and adding is not None:
            adding(total, left, right, alpha=factor)
            continue
        part = func(left, right)
        part = part if factor == 1 else part.mul_(factor)
        total = part if total is None else total + part
    return total


_PRODUCTS = {
    aten.addmm.default: aten.mm.default,
    aten.baddbmm.default: aten.bmm.default,
    aten.addmv.default: aten.mv.default,
}


@rule(*_PRODUCTS)
def matrix_product_added(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a product of matrices added to something."""
    into, left, right = args
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    result = func(*args, **kwargs)
    (into1, into2), (left1, left2), (right1, right2) = pair_of(into), pair_of(left), pair_of(right)
    product = _PRODUCTS[func]
    moves = []
    for start, products in (
        (into1, [(left1, right, alpha), (left, right1, alpha)]),
        (into2, [(left2, right, alpha), (left1, right1, 2 * alpha), (left, right2, alpha)]),
    ):
        known = [part for part in products if part[0] is not None and part[1] is not None]
        if start is not None and known:
            moves.append(_accumulated(product, known[1:], func(start, *known[0][:2], beta=beta, alpha=known[0][2])))
        elif start is not None:
            moves.append(spread(start if beta == 1 else start * beta, result))
        else:
            moves.append(_accumulated(product, known))
    return with_moves(result, *moves)


@rule(aten.addcmul.default)
def product_added(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a product element by element, added to something."""
    into, left, right = args
    value = kwargs.get("value", 1)
    result = func(into, left, right, value=value)
    moves = product_moves(lambda one, other: (one * other).mul_(value), left, right)
    return with_moves(result, *(spread(add(move, start), result) for move, start in zip(moves, pair_of(into), strict=True)))


@rule(aten.convolution.default)
def convolved(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a convolution, which may be transposed."""
    inputs, weight, bias, *how = args
    result = func(inputs, weight, bias, *how)
    (inputs1, inputs2), (weight1, weight2), (bias1, bias2) = pair_of(inputs), pair_of(weight), pair_of(bias)
    first = [func(inputs, weight1, bias1, *how)] if weight1 is not None else []
    if inputs1 is not None:
        first.append(func(inputs1, weight, bias1 if not first else None, *how))
    if not first:
        assert bias1 is not None
        first.append(bias1.reshape(-1, *[1] * (result.dim() - 2)).expand_as(result).contiguous())
    second = [func(inputs2, weight, bias2, *how)] if inputs2 is not None else []
    if inputs1 is not None and weight1 is not None:
        second.append(func(inputs1, weight1, None, *how).mul_(2))
    if weight2 is not None:
        second.append(func(inputs, weight2, None, *how))
    if bias2 is not None and inputs2 is None:
        second.append(bias2.reshape(-1, *[1] * (result.dim() - 2)).expand_as(result).contiguous())
    return with_moves(result, _gather([*first]), _gather([*second]), own=True)


@rule(aten._trilinear.default)
def of_three(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what is linear in each of three tensors."""
    values, how = list(args[:3]), args[3:]
    pairs = [pair_of(value) for value in values]

    def with_replaced(*replaced: tuple[int, Move]) -> Move:
        if any(move is None for _, move in replaced):
            return None
        given = dict(replaced)
        return func(*(given.get(place, value) for place, value in enumerate(values)), *how, **kwargs)

    places = range(3)
    first = add(*(with_replaced((place, pairs[place][0])) for place in places))
    mixed = add(*(with_replaced((a, pairs[a][0]), (b, pairs[b][0])) for a in places for b in places if a < b))
    second = add(None if mixed is None else 2 * mixed, *(with_replaced((place, pairs[place][1])) for place in places))
    return with_moves(func(*args, **kwargs), first, second)
