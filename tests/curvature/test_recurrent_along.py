"""An LSTM along a direction, against automatic differentiation of its definition."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from cockpit_lite.curvature.recurrent_along import Moving, sequence_along

T, N, INPUTS, SIZE = 5, 3, 4, 6


def lstm(inputs: Tensor, hidden: Tensor, cell: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The definition: all hidden states and the last cell state."""
    into, across, *biases = weights
    hiddens = []
    for value in inputs:
        enter, forget, fresh, out = (value @ into.T + hidden @ across.T + sum(biases)).chunk(4, 1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * fresh.tanh()
        hidden = out.sigmoid() * cell.tanh()
        hiddens.append(hidden)
    return torch.stack([*hiddens, cell])


def derivative(value: Tensor, time: Tensor) -> Tensor:
    """The derivative of each element by ``time``, with a graph."""
    weights = torch.zeros_like(value, requires_grad=True)
    (along,) = torch.autograd.grad(value, time, weights, create_graph=True)
    (found,) = torch.autograd.grad(along, weights, create_graph=True)
    return found


@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("moving", [True, False], ids=["all moves", "only weights move"])
def test_both_derivatives_are_those_of_the_definition(biased: bool, moving: bool) -> None:
    torch.manual_seed(0)
    double = torch.float64
    shapes = [(4 * SIZE, INPUTS), (4 * SIZE, SIZE), *[(4 * SIZE,)] * 2 * biased]
    weights, directions = ([torch.randn(shape, dtype=double) for shape in shapes] for _ in range(2))
    given = [
        Moving(*(torch.randn(shape, dtype=double) for _ in range(3 if moving else 1)))
        for shape in [(T, N, INPUTS), (N, SIZE), (N, SIZE)]
    ]

    def at(time: Tensor) -> Tensor:
        values, hidden, cell = (
            value if first is None or second is None else value + time * first + time**2 / 2 * second
            for value, first, second in given
        )
        return lstm(
            values, hidden, cell, [weight + time * direction for weight, direction in zip(weights, directions, strict=True)]
        )

    time = torch.zeros((), dtype=double, requires_grad=True)
    value = at(time)
    first = derivative(value, time)
    inputs, hidden, cell = given
    hiddens, last = sequence_along(inputs, hidden, cell, weights, directions)

    for found, wanted in zip(zip(hiddens, last, strict=True), [value, first, derivative(first, time)], strict=True):
        parts = [part for part in found if part is not None]
        assert_close(torch.cat([parts[0], parts[1][None]]), wanted.detach(), rtol=1e-12, atol=1e-12)
