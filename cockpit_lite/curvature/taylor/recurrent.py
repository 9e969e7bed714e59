"""An LSTM, which is no single operation here but a loop over time with its own derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _pop_mode_temporarily

from cockpit_lite.curvature.recurrent import SequenceFunction
from cockpit_lite.curvature.recurrent_along import Moving, sequence_along
from cockpit_lite.curvature.taylor.moves import NoForwardMode, moves_of, with_moves
from cockpit_lite.curvature.taylor.sums import pair_of


def sequence(inputs: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states (T, N, H) and the last cell state of one direction of one layer, which move if something does.

    Args:
        inputs: (T, N, I).
        hidden: The first state, (N, H).
        cell: The first one, (N, H).
        weights: As PyTorch orders them.
    """
    given = (inputs, hidden, cell, *weights)
    if not torch.is_grad_enabled() or all(moves_of(value) is None for value in given):
        found: tuple[Tensor, Tensor] = SequenceFunction.apply(*given)
        return found
    if any(pair_of(weight)[1] is not None for weight in weights):
        raise NoForwardMode("the weights of a recurrent layer are computed")
    with _pop_mode_temporarily():
        directions = [torch.zeros_like(weight) if (move := pair_of(weight)[0]) is None else move for weight in weights]
        moving = [Moving(value, *pair_of(value)) for value in (inputs, hidden, cell)]
        hiddens, last = sequence_along(moving[0], moving[1], moving[2], weights, directions)
        # The values are cut out of what they were computed in: own memory, so that an operation in place is seen.
        return (
            with_moves(hiddens.value.clone(), hiddens.first, hiddens.second),
            with_moves(last.value.clone(), last.first, last.second),
        )
