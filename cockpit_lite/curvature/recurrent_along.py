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

    beside = _beside(states, moves, cell_moves)
    del moves  # large: before the next of its size is made
    bends = torch.mm(hidden_moves[:-1].flatten(0, 1), across.T).mul_(2)
    if inputs.first is not None:
        bends.addmm_(inputs.first.flatten(0, 1), into.T, alpha=2)
    if inputs.second is not None:
        bends.addmm_(inputs.second.flatten(0, 1), states.into.T)
    bends = bends.view_as(states.gates)
    hidden_bends, cell_bends = carry(states, bends, _or(hidden.second, nothing), _or(cell.second, nothing), beside)

    return (
        Moving(states.hidden[1:], hidden_moves[1:], hidden_bends[1:]),
        Moving(states.cell[-1], cell_moves[-1], cell_bends[-1]),
    )


def _beside(states: States, moves: Tensor, cell_moves: Tensor) -> tuple[Tensor, Tensor]:
    """Return what bends cell and hidden states at each time beside the sums' own second derivatives."""
    enter, forget, fresh, out = states.gates.unbind(2)
    before, after, flat = cell_moves[:-1], cell_moves[1:], states.flat
    by_gate = moves.unbind(2)  # one gate after the other: all at once would take several times the memory
    forget_moves, forget_bends = _sigmoid(forget, by_gate[1])
    to_cell = forget_bends.mul_(states.cell[:-1]).addcmul_(forget_moves, before, value=2)
    enter_moves, enter_bends = _sigmoid(enter, by_gate[0])
    to_cell.addcmul_(enter_bends, fresh)
    fresh_moves = (1 - fresh.square()).mul_(by_gate[2])
    to_cell.addcmul_(enter_moves, fresh_moves, value=2)
    to_cell.addcmul_(enter, fresh_moves.mul_(by_gate[2]).mul_(fresh), value=-2)
    out_moves, out_bends = _sigmoid(out, by_gate[3])
    to_hidden = out_bends.mul_(states.bent)
    to_hidden.addcmul_(flat * after, out_moves.addcmul_(out * states.bent, after, value=-1), value=2)
    return to_cell, to_hidden


def _sigmoid(gate: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a move of the sums moves a sigmoid gate by, and what it bends it by."""
    first = (gate - gate.square()).mul_(move)
    return first, torch.rsub(gate, 1, alpha=2).mul_(first).mul_(move)


def _or(value: Tensor | None, otherwise: Tensor) -> Tensor:
    return otherwise if value is None else value
