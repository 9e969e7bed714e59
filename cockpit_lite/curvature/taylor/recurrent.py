"""An LSTM, which is no single operation here but a loop over time with its own derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _pop_mode_temporarily

from cockpit_lite.curvature.recurrent import SequenceFunction
from cockpit_lite.curvature.recurrent_along import Moving, sequence_along
from cockpit_lite.curvature.taylor.moves import NoForwardMode, moves_of, with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule
from cockpit_lite.curvature.taylor.sums import pair_of

_LSTM = 2  # PyTorch's number of the kind


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
    with _pop_mode_temporarily():
        hiddens, last = _along(inputs, hidden, cell, weights)
        # The values are cut out of what they were computed in: own memory, so that an operation in place is seen.
        return (
            with_moves(hiddens.value.clone(), hiddens.first, hiddens.second),
            with_moves(last.value.clone(), last.first, last.second),
        )


def _along(inputs: Tensor, hidden: Tensor, cell: Tensor, weights: Sequence[Tensor]) -> tuple[Moving, Moving]:
    if any(pair_of(weight)[1] is not None for weight in weights):
        raise NoForwardMode("the weights of a recurrent layer are computed")
    directions = [torch.zeros_like(weight) if (move := pair_of(weight)[0]) is None else move for weight in weights]
    moving = [Moving(value, *pair_of(value)) for value in (inputs, hidden, cell)]
    return sequence_along(moving[0], moving[1], moving[2], weights, directions)


@rule(aten.mkldnn_rnn_layer.default)
def layer(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return what the CPU's kernel does, of which one direction of one layer is left where there is dropout between layers."""
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given["mode"] != _LSTM or given["batch_sizes"]:
        raise NoForwardMode("it is not known how a recurrent layer of this kind moves")
    weights = [given[f"weight{number}"] for number in range(4 if given["has_biases"] else 2)]
    inputs, states = given["input"], [given["hx_"], given["cx_"]]
    shapes = [state.shape for state in states]

    def turned(value: Tensor) -> Tensor:
        flipped = value.flip(0) if given["reverse"] else value
        first, second = pair_of(value)
        if first is None:
            return flipped
        return with_moves(flipped, *(move if move is None or not given["reverse"] else move.flip(0) for move in (first, second)))

    def flat(state: Tensor) -> Tensor:
        return with_moves(
            state.view(state.shape[-2:]), *(None if move is None else move.view(state.shape[-2:]) for move in pair_of(state))
        )

    results = func(*args, **kwargs)
    hiddens, last = _along(turned(inputs), flat(states[0]), flat(states[1]), weights)
    assert hiddens.first is not None
    assert hiddens.second is not None
    ends = hiddens.first[-1], hiddens.second[-1]
    whole = [move.flip(0) if given["reverse"] else move for move in (hiddens.first, hiddens.second)]
    return (
        with_moves(results[0], *whole),
        with_moves(results[1], *(move.view(shapes[0]) for move in ends)),
        with_moves(results[2], *(None if move is None else move.view(shapes[1]) for move in (last.first, last.second))),
        *results[3:],
    )
