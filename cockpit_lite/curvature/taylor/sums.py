"""Sums of moves, of which some are nothing (None)."""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.curvature.taylor.moves import shared

Move = Tensor | None


def pair_of(value: object) -> tuple[Move, Move]:
    """Return the first and the second derivative of an argument, which need not be a tensor."""
    moves = shared(value) if isinstance(value, Tensor) else None
    return (None, None) if moves is None else moves[:2]


def add(*moves: Move) -> Move:
    """Return the sum; it may be one of them."""
    found = [move for move in moves if move is not None]
    if not found:
        return None
    total = found[0]
    for move in found[1:]:
        total = total + move
    return total


def spread(move: Move, like: Tensor) -> Move:
    """Return a move in the shape of the result, where the argument was broadcast."""
    return move if move is None or move.shape == like.shape else move.expand_as(like)
