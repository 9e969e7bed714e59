"""The moves of a tensor, and where they are kept: on the tensor itself, for as long as it lives."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from cockpit_lite.errors import NotMeasured

AnyTensor = TypeVar("AnyTensor", bound=Tensor)

_NAME = "_cockpit_lite_moves"


class NoForwardMode(NotMeasured):
    """Something was done to a tensor that moves of which it is not known how it moves the result."""


class Taken(NoForwardMode):
    """The moves of a tensor were needed once more after their memory had been given to those of another one."""


class Moves(NamedTuple):
    """How a tensor moves along the direction; shared between tensors, so never changed in place, but see :func:`take`.

    Attributes:
        first: The first derivative.
        second: The second one; None: zero.
        version: How often the tensor had been changed in place when the moves were those of its values.
        own: Whether the memory belongs to this tensor alone, and nobody has asked for them yet.
    """

    first: Tensor
    second: Tensor | None
    version: int
    own: bool = False


#: Whether memory is given on; what a model needs twice is then found out too late, and it must be called again.
frugal: ContextVar[bool] = ContextVar("frugal", default=False)


def with_moves(
    value: AnyTensor, first: Tensor | None, second: Tensor | None = None, *, changes: int = 0, own: bool = False
) -> AnyTensor:
    """Return ``value``, which moves like this from now on.

    Args:
        value: Any tensor.
        first: Its first derivative; None: it is a constant, even if it shares memory with something that moves.
        second: Its second derivative; None: zero.
        changes: How often it will still be changed in place to the values that these are the moves of.
        own: The memory of the moves is new.
    """
    setattr(value, _NAME, None if first is None else Moves(first, second, value._version + changes, own and frugal.get()))
    return value


def moves_of(value: Tensor) -> Moves | None:
    """Return how a tensor moves; None: not at all.

    Raises:
        NoForwardMode: if that was lost, since its memory was changed through another tensor or given away.
    """
    found: Moves | None = getattr(value, _NAME, _UNKNOWN)
    if found is None or (found is not _UNKNOWN and found.version == value._version):
        return found
    if found is _TAKEN:
        raise Taken("a tensor was needed twice")
    base = value._base
    if base is not None and moves_of(base) is not None:
        whole = shared(base)
        assert whole is not None
        second = None if whole.second is None else cut(whole.second, value, base)
        return Moves(cut(whole.first, value, base), second, value._version)
    if found is _UNKNOWN:
        if type(value) not in _PLAIN:
            raise NoForwardMode(f"it is not known how a {type(value).__name__} moves")
        return None
    raise NoForwardMode("a tensor was changed in place through another one")


def shared(value: Tensor) -> Moves | None:
    """Return how a tensor moves, for the moves of another one."""
    moves = moves_of(value)
    if moves is not None and moves.own:
        moves = moves._replace(own=False)
        setattr(value, _NAME, moves)
    return moves


def take(value: Tensor) -> Moves | None:
    """Return how a tensor moves; where they are its own, their memory may be used for those of another one.

    An activation is seldom needed but by the layer behind it. Where it is, :class:`Taken` is raised then.
    """
    moves = moves_of(value)
    if moves is not None and moves.own:
        setattr(value, _NAME, _TAKEN)
    return moves


def cut(move: Tensor, view: Tensor, base: Tensor) -> Tensor:
    """Return what ``view`` is of ``base`` of ``move``, which is like ``base``."""
    return strided(move, base, view.shape, view.stride(), view.storage_offset())


def strided(move: Tensor, like: Tensor, shape: Sequence[int], stride: Sequence[int], offset: Any) -> Tensor:
    """Return ``like.as_strided(shape, stride, offset)`` of ``move`` instead, which need not lie in memory as ``like`` does."""
    if move.stride() != like.stride():
        move = torch.empty_strided(like.shape, like.stride(), dtype=move.dtype, device=move.device).copy_(move)
    return move.as_strided(shape, stride, offset - like.storage_offset() + move.storage_offset())


def change(value: Tensor, moves: Moves | None) -> None:
    """Let the values that are about to be written into ``value`` move like this.

    Raises:
        NoForwardMode: see :func:`moves_of`.
    """
    base = value._base
    if base is None or getattr(value, _NAME, _UNKNOWN) is None:
        with_moves(value, *(moves[:2] if moves is not None else (None,)), changes=1)
        return
    before, after = shared(base), moves
    if before is None and after is None:
        return
    written: list[Tensor | None] = []
    for move, part in zip(before[:2] if before else (None, None), after[:2] if after else (None, None), strict=True):
        if move is None and part is None:
            written.append(None)
            continue
        whole = torch.empty_strided(base.shape, base.stride(), dtype=base.dtype, device=base.device)
        whole.copy_(torch.zeros_like(base) if move is None else move)
        cut(whole, value, base).copy_(torch.zeros_like(value) if part is None else part)
        written.append(whole)
    with_moves(base, *written, changes=1)
    if hasattr(value, _NAME):
        delattr(value, _NAME)  # they are read off the base now


_UNKNOWN: Any = object()
_TAKEN: Any = Moves(torch.empty(0), None, -1)
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
