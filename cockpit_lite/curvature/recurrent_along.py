r"""An LSTM along a direction: how its states move and bend with t, where weights, inputs and first states depend on t.

With the gates' sums z = W x + U h, directions (V, Y) of the weights and dots for derivatives in t:

    z'  = W x'  + V x   + U h'  + Y h
    z'' = W x'' + 2 V x' + U h'' + 2 Y h'

Only the products with U hang on the step before. What else bends a state (second derivatives of the gates, products of two
first derivatives) is known for all times once the first derivatives are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cockpit_lite.curvature.recurrent import States, carry


class Moving(NamedTuple):
    """A tensor that depends on t.

    Attributes:
        value: At t = 0.
        first: Its derivative; None if it does not move.
        second: Its second derivative; None if it does not bend.
    """

    value: Tensor
    first: Tensor | None = None
    second: Tensor | None = None


def sequence_along(
    inputs: Moving, hidden: Moving, cell: Moving, weights: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Moving, Moving]:
    """Return the hidden states (T, N, H) and the last cell state (N, H) of one direction of one layer.

    Args:
        inputs: (T, N, I).
        hidden: The first state, (N, H).
        cell: The first one, (N, H).
        weights: As PyTorch orders them: of the inputs, of the hidden state and, if there are any, the two biases.
        directions: What the weights move along, like ``weights``; they do not bend.
    """
    states = States(inputs.value, hidden.value, cell.value, weights)
    into, across, *biases = directions
    nothing = torch.zeros_like(hidden.value)

    moves = (states.inputs.flatten(0, 1) @ into.T).addmm_(states.hidden[:-1].flatten(0, 1), across.T)
    if biases:
        moves += biases[0] + biases[1]
    if inputs.first is not None:
        moves.addmm_(inputs.first.flatten(0, 1), states.into.T)
    moves = moves.view_as(states.gates)
    hidden_moves, cell_moves = carry(states, moves, _or(hidden.first, nothing), _or(cell.first, nothing))

    bends = torch.mm(hidden_moves[:-1].flatten(0, 1), across.T).mul_(2)
    if inputs.first is not None:
        bends.addmm_(inputs.first.flatten(0, 1), into.T, alpha=2)
    if inputs.second is not None:
        bends.addmm_(inputs.second.flatten(0, 1), states.into.T)
    bends = bends.view_as(states.gates)
    beside = _beside(states, moves, cell_moves)
    hidden_bends, cell_bends = carry(states, bends, _or(hidden.second, nothing), _or(cell.second, nothing), beside)

    return (
        Moving(states.hidden[1:], hidden_moves[1:], hidden_bends[1:]),
        Moving(states.cell[-1], cell_moves[-1], cell_bends[-1]),
    )


def _beside(states: States, moves: Tensor, cell_moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return what bends cell and hidden states at each time beside the sums' own second derivatives."""
    gates, first = states.gates, states.slopes()
    # The second derivatives of the gates are (1 - 2 gate) and, of tanh, -2 gate times the first ones.
    second = 1 - 2 * gates
    second[:, :, 2] -= 1
    first *= moves
    second *= first
    second *= moves
    enter, _, fresh, out = gates.unbind(2)
    enter_moves, forget_moves, fresh_moves, out_moves = first.unbind(2)
    enter_bends, forget_bends, fresh_bends, out_bends = second.unbind(2)
    before, after = cell_moves[:-1], cell_moves[1:]
    to_cell = enter_bends * fresh + enter * fresh_bends + forget_bends * states.cell[:-1]
    to_cell += 2 * (enter_moves * fresh_moves + forget_moves * before)
    flat = states.flat
    to_hidden = out_bends * states.bent + 2 * flat * after * (out_moves - out * states.bent * after)
    return to_cell, to_hidden


def _or(value: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if value is None else value
