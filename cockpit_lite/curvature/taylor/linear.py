"""Linear operations: the moves go the way of the values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import NoForwardMode, moves_of, strided, with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import Move, pair_of, spread


@rule(
    aten.alias.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.clone.default,
    aten.constant_pad_nd.default,
    aten.contiguous.default,
    aten.cumsum.default,
    aten.diag_embed.default,
    aten.diagonal.default,
    aten.expand.default,
    aten.flip.default,
    aten.gather.default,
    aten.im2col.default,
    aten.col2im.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.mean.default,
    aten.mean.dim,
    aten.narrow.default,
    aten.neg.default,
    aten.permute.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.repeat.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
    aten.roll.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.t.default,
    aten.trace.default,
    aten.transpose.int,
    aten.tril.default,
    aten.triu.default,
    aten.unfold.default,
    aten.unsqueeze.default,
    aten.upsample_bicubic2d.default,
    aten.upsample_bilinear2d.default,
    aten.upsample_linear1d.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    aten.upsample_trilinear3d.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten._conj.default,
    aten._fft_c2c.default,
    aten._fft_c2r.default,
    aten._fft_r2c.default,
    aten.imag.default,
    aten.real.default,
    aten.view_as_complex.default,
    aten.view_as_real.default,
)
def of_one(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the result for an operation that is linear in its first argument; the others are constants."""
    first, second = pair_of(args[0])
    assert first is not None, "another argument moves"
    rest = args[1:]
    return with_moves(
        func(*args, **kwargs), func(first, *rest, **kwargs), None if second is None else func(second, *rest, **kwargs)
    )


@rule(aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default)
def reshaped(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a view; that of the moves may need a copy, since they need not lie in memory as the values do."""
    first, second = pair_of(args[0])
    result = func(*args, **kwargs)
    assert first is not None
    return with_moves(result, first.reshape(result.shape), None if second is None else second.reshape(result.shape))


@rule(aten._to_copy.default)
def converted(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a copy of another type or on another device; integers do not move."""
    result = func(*args, **kwargs)
    return of_one(func, args, kwargs) if result.is_floating_point() or result.is_complex() else result


@rule(aten.as_strided.default)
def restrided(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return another view of the same memory."""
    value, shape, stride, *rest = args
    offset = rest[0] if rest and rest[0] is not None else value.storage_offset()
    moves = (None if move is None else strided(move, value, shape, stride, offset) for move in pair_of(value))
    return with_moves(func(*args, **kwargs), *moves)


@rule(
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.unsafe_chunk.default,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
)
def pieces(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the pieces of a tensor."""
    first, second = pair_of(args[0])
    results = func(*args, **kwargs)
    firsts = func(first, *args[1:], **kwargs)
    seconds = [None] * len(firsts) if second is None else func(second, *args[1:], **kwargs)
    return [with_moves(*moved) for moved in zip(results, firsts, seconds, strict=True)]


@rule(aten.cat.default, aten.stack.default)
def joined(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return several tensors in one."""
    values, *rest = args
    pairs = [pair_of(value) for value in values]
    moves: list[Move] = []
    for place in (0, 1):
        known = [pair[place] for pair in pairs]
        if all(move is None for move in known):
            moves.append(None)
            continue
        filled = [torch.zeros_like(value) if move is None else move for move, value in zip(known, values, strict=True)]
        moves.append(func(filled, *rest, **kwargs))
    return with_moves(func(*args, **kwargs), *moves)


@rule(aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar, aten.rsub.Scalar, aten.rsub.Tensor)
def added(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a sum or a difference."""
    left, right, factor = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("alpha", 1)
    name = func._schema.name
    result = func(*args, **kwargs)
    factors = (-factor, 1) if name == "aten::rsub" else (1, -factor if name == "aten::sub" else factor)
    moves: list[Move] = []
    for mine, other in zip(pair_of(left), pair_of(right), strict=True):
        if mine is None or other is None:
            move, scale = (mine, factors[0]) if other is None else (other, factors[1])
            moves.append(move if move is None or scale == 1 else move * scale)
        elif factors[0] == 1:
            moves.append(torch.add(mine, other, alpha=factors[1]))
        else:
            moves.append(torch.add(other, mine, alpha=factors[0]))
    return with_moves(result, *(_as(move, result) for move in moves))


@rule(aten.where.self)
def chosen(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return elements of one or of the other."""
    condition, left, right = args
    result = func(condition, left, right)
    moves = []
    for mine, other in zip(pair_of(left), pair_of(right), strict=True):
        none = mine is None and other is None
        moves.append(None if none else torch.where(condition, 0 if mine is None else mine, 0 if other is None else other))
    return with_moves(result, *(_as(move, result) for move in moves))


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a tensor with some elements replaced by one number."""
    values, mask, number = args
    if isinstance(number, Tensor) and moves_of(number) is not None:
        raise NoForwardMode("what a mask is filled with moves")
    result = func(values, mask, number)
    return with_moves(result, *(None if move is None else move.masked_fill(mask, 0) for move in pair_of(values)))


@rule(aten.native_dropout.default)
def dropped(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return a tensor with some elements dropped and the others scaled, and which were kept: what accelerators do at once."""
    values, share, training = args
    result, kept = func(values, share, training)
    scale = 1.0 if training is False else 0.0 if share == 1 else 1 / (1 - share)
    return with_moves(result, *(None if move is None else move * kept * scale for move in pair_of(values))), kept


@rule(
    aten.index_copy.default,
    aten.index_add.default,
    aten.scatter.src,
    aten.scatter_add.default,
    aten.index_put.default,
    aten.masked_scatter.default,
    aten.select_scatter.default,
    aten.slice_scatter.default,
)
def put(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return a tensor with another one put or added into places of it: linear in both."""
    place = next(index for index, argument in enumerate(func._schema.arguments) if argument.name in ("source", "src", "values"))
    other = args[place]
    moves: list[Move] = []
    for move, put in zip(pair_of(args[0]), pair_of(other), strict=True):
        if move is None and put is None:
            moves.append(None)
            continue
        into = torch.zeros_like(args[0]) if move is None else move
        source = torch.zeros_like(other) if put is None else put
        moves.append(func(into, *args[1:place], source, *args[place + 1 :], **kwargs))
    return with_moves(func(*args, **kwargs), *moves)


@rule(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def chosen_classes(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the negative sum or mean of the chosen classes' elements, and the sum of their weights, a constant."""
    result, weight = func(*args, **kwargs)
    moves = (None if move is None else func(move, *args[1:], **kwargs)[0] for move in pair_of(args[0]))
    return with_moves(result, *moves), weight


@rule(aten.embedding.default)
def rows(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return rows of a weight; the padding's is a constant, as it is for autograd."""
    weight, indices, *options = args
    padding = options[0] if options else -1
    if len(options) > 1 and options[1]:
        raise NoForwardMode("the gradient of an embedding is scaled by frequency, so it is no derivative")
    moves = []
    for move in pair_of(weight):
        found = None if move is None else func(move, indices)
        moves.append(found if found is None or padding < 0 else found.masked_fill_((indices == padding).unsqueeze(-1), 0))
    return with_moves(func(*args, **kwargs), *moves)


@rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def bags(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return sums or means of rows of a weight."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("mode", 0) == 2 or given.get("scale_grad_by_freq") or given.get("per_sample_weights") is not None:
        raise NoForwardMode("it is not known how a bag of this kind moves")
    if given.get("padding_idx", -1) >= 0:
        raise NoForwardMode("it is not known how a bag with padding moves")
    results = func(*args, **kwargs)
    moves = [None if move is None else func(move, *args[1:], **kwargs)[0] for move in pair_of(args[0])]
    return (with_moves(results[0], *moves), *results[1:])


def _as(move: Move, result: Tensor) -> Move:
    return None if move is None else spread(move.to(result.dtype), result)
