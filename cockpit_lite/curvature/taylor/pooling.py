"""The greatest of several elements, which moves as that element does."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import Move, pair_of

#: How many of the last axes a place has.
_AXES = {
    aten.max_pool2d_with_indices.default: 2,
    aten.max_pool3d_with_indices.default: 3,
    aten.adaptive_max_pool2d.default: 2,
    aten.adaptive_max_pool3d.default: 3,
    aten.fractional_max_pool2d.default: 2,
}


@rule(*_AXES)
def max_pool(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the greatest element of each window, and where it was."""
    result, places = func(*args, **kwargs)
    start = -_AXES[func]
    flat = places.flatten(start)
    moves: list[Move] = []
    for move in pair_of(args[0]):
        moves.append(None if move is None else move.flatten(start).gather(-1, flat).view(result.shape))
    return with_moves(result, *moves), places


@rule(aten.max.dim, aten.min.dim, aten.topk.default, aten.sort.default, aten.sort.stable, aten.median.dim, aten.kthvalue.default)
def picked(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return some elements along an axis, and where they were."""
    result, places = func(*args, **kwargs)
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    axis, kept = given.get("dim", -1), places.dim() == args[0].dim()
    index = places if kept else places.unsqueeze(axis)
    moves: list[Move] = []
    for move in pair_of(args[0]):
        found = None if move is None else move.gather(axis, index)
        moves.append(found if found is None or kept else found.squeeze(axis))
    return with_moves(result, *moves), places


@rule(aten.amax.default, aten.amin.default, aten.max.default, aten.min.default)
def extreme(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the greatest (smallest) element along axes; all that are equal move it alike, as autograd has it."""
    value, axes, *rest = (*args, []) if len(args) == 1 else args
    axes = list(range(value.dim())) if not axes and axes != 0 else axes
    keep = bool(rest and rest[0]) or kwargs.get("keepdim", False)
    result = func(*args, **kwargs)
    whole = result
    if not keep and value.dim():
        for axis in sorted(place % value.dim() for place in ([axes] if isinstance(axes, int) else axes)):
            whole = whole.unsqueeze(axis)
    equal = value == whole
    count = equal.sum(axes, keepdim=keep)
    moves: list[Move] = []
    for move in pair_of(value):
        moves.append(None if move is None else move.masked_fill(~equal, 0).sum(axes, keepdim=keep) / count)
    return with_moves(result, *moves)
