r"""The twin of PyTorch's LSTM: the same numbers, with a second derivative that costs little more than the first.

PyTorch differentiates its recurrent kernel twice by unrolling it into thousands of small operations; a product with the Hessian
then takes four to six training steps. Here both derivatives are written down. With the gates' sums ``z``, what a backward pass
sends into them is ``Z``; given directions v of inputs and weights, a product is the same backward pass in dual numbers: the
directions move the states forwards (``hdot``), and what these change of Z goes backwards (``Zdot``). That is the derivative of
``<slopes, v>`` in all that the slopes were made of, since second derivatives are symmetric. Whatever does not hang on the step
before is done for all times at once: two matrix products a time step remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cockpit_lite.curvature.obstacles import walk

#: The node in whose place it pays to repeat the forward pass with the twin.
_SLOW = "MkldnnRnnLayerBackward0"

_GATES = 4  # in, forget, cell, out: in PyTorch's order


def has_slow_nodes(loss: Tensor, model: nn.Module) -> bool:
    """Return whether the second derivative of a graph takes long, and one by the twin would not."""
    if not any(isinstance(module, nn.LSTM) for module in model.modules()):
        return False
    return any(node.name() == _SLOW for node in walk([loss]))


def twin(original: Callable[..., Any], sequence: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """Return what stands in for ``torch._VF.lstm``; what it does not know (packed sequences, projections) is left to that one.

    Args:
        original: That one.
        sequence: Does one direction of one layer, as :class:`SequenceFunction` does.
    """

    def lstm(inputs: Tensor, states: Any, weights: Any, *options: Any) -> Any:
        if isinstance(states, Tensor):  # the sizes of a packed batch
            return original(inputs, states, weights, *options)
        bias, layers, dropout, training, bidirectional, batch_first = options
        each, directions = 4 if bias else 2, 2 if bidirectional else 1
        known = len(weights) == layers * directions * each and states[0].shape == states[1].shape
        if not known or (dropout and training and layers > 1) or inputs.dim() != 3:
            return original(inputs, states, weights, *options)
        values, lasts = inputs.transpose(0, 1) if batch_first else inputs, []
        for layer in range(layers):
            sides = []
            for side in range(directions):
                place = layer * directions + side
                given = weights[place * each : (place + 1) * each]
                found, cell = sequence(values.flip(0) if side else values, states[0][place], states[1][place], *given)
                lasts.append((found[-1], cell))
                sides.append(found.flip(0) if side else found)
            values = sides[0] if len(sides) == 1 else torch.cat(sides, 2)
        hidden, cells = (torch.stack(values) for values in zip(*lasts, strict=True))
        return values.transpose(0, 1) if batch_first else values, hidden, cells

    return lstm


class States:
    """What one direction of one layer went through, (T, N, ...): gates, and cell and hidden states with the first ones."""

    def __init__(self, inputs: Tensor, hidden: Tensor, cell: Tensor, weights: Sequence[Tensor]):
        into, across, *biases = weights
        times, count, size = len(inputs), *hidden.shape
        self.inputs, self.into, self.across = inputs.contiguous(), into, across
        flat = self.inputs.flatten(0, 1)
        sums = torch.addmm(biases[0] + biases[1], flat, into.T) if biases else flat @ into.T
        sums = sums.view(times, count, _GATES * size)
        self.hidden = inputs.new_empty(times + 1, count, size)
        self.cell, self.bent = torch.empty_like(self.hidden), torch.empty_like(self.hidden[1:])
        self.hidden[0], self.cell[0] = hidden, cell
        self.turned = across.T.contiguous()
        for time in range(times):
            gates = sums[time].addmm_(self.hidden[time], self.turned)
            gates[:, : 2 * size].sigmoid_()
            gates[:, 2 * size : 3 * size].tanh_()
            gates[:, 3 * size :].sigmoid_()
            enter, forget, fresh, out = gates.unflatten(1, (_GATES, size)).unbind(1)
            torch.mul(forget, self.cell[time], out=self.cell[time + 1]).addcmul_(enter, fresh)
            torch.tanh(self.cell[time + 1], out=self.bent[time])
            torch.mul(out, self.bent[time], out=self.hidden[time + 1])
        self.gates = sums.unflatten(2, (_GATES, size))
        enter, _, fresh, out = self.gates.unbind(2)
        # What the sums move the cell state by, and the last one the hidden state.
        self.shares = torch.stack([fresh, self.cell[:-1], enter, self.bent], 2).mul_(self.slopes())
        self.open = out * self.flat  # what the cell state moves the hidden state by

    @property
    def flat(self) -> Tensor:
        """The derivative of tanh at the cell states."""
        return 1 - self.bent**2

    def slopes(self) -> Tensor:
        """Return the derivatives of the gates by their sums."""
        slopes = torch.addcmul(self.gates, self.gates, self.gates, value=-1)
        fresh = self.gates[:, :, 2]
        torch.addcmul(torch.ones_like(fresh), fresh, fresh, value=-1, out=slopes[:, :, 2])
        return slopes


class _Backward:
    """The backward pass: what reaches the sums, hidden and cell states at each time."""

    def __init__(self, states: States, slopes: Tensor, last: Tensor):
        self.states = states
        self.sums, self.hidden = torch.empty_like(states.shares), slopes.clone(memory_format=torch.contiguous_format)
        self.cell = torch.empty_like(self.hidden)
        self.first = _send_back(states, self.hidden, self.cell, self.sums, last)
        self._bend: _Bend | None = None

    def by_weights(self, biases: int) -> list[Tensor]:
        """Return what reaches the weights."""
        flat = self.sums.flatten(2).flatten(0, 1)
        found = [flat.T @ self.states.inputs.flatten(0, 1), flat.T @ self.states.hidden[:-1].flatten(0, 1)]
        return [*found, *(flat.sum(0) for _ in range(biases))]  # no tensor twice: autograd tells outputs apart by them

    @property
    def bend(self) -> _Bend:
        """How it depends on the states; the same for all products."""
        if self._bend is None:
            self._bend = _Bend(self)
        return self._bend


class _Bend:
    """Second derivatives at each time: what moves of the sums (and of the cell state) change of what is sent back.

    Attributes:
        own: In the sum itself.
        cross: Of the gate that lets in by the fresh value, and the other way round.
        forget: In the forget gate's sum by the cell state before, and the other way round.
        out: In the out gate's sum by the cell state, and the other way round.
        cell: In the cell state itself.
        room: For what is made on the way: fresh memory costs more time than what is done in it.
    """

    def __init__(self, back: _Backward):
        states = back.states
        slopes = states.slopes()
        self.forget = back.cell * slopes[:, :, 1]
        self.cross = back.cell * slopes[:, :, 0] * slopes[:, :, 2]
        self.out = back.hidden * slopes[:, :, 3] * states.flat
        self.cell = back.hidden * states.open * states.bent * -2
        # The second derivatives of the gates are (1 - 2 gate) and, of tanh, -2 gate times the first ones.
        own = 1 - 2 * states.gates
        own[:, :, 2] -= 1
        self.own = own.mul_(back.sums)
        self.room = [torch.empty_like(back.sums) for _ in range(2)], [torch.empty_like(back.hidden) for _ in range(3)]


def _send_back(
    states: States, hidden: Tensor, cell: Tensor, sums: Tensor, last: Tensor, carried: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Go through the times backwards; ``hidden``, and with ``carried`` ``cell`` and ``sums``, hold what comes in from elsewhere.

    Returns:
        What reaches the first hidden and the first cell state.
    """
    forgets = states.gates[:, :, 1].unbind()
    below, coming = torch.zeros_like(hidden[0]), last
    by_time = [hidden.unbind(), cell.unbind(), sums.unbind(), states.open.unbind(), states.shares.unbind()]
    for time in reversed(range(len(hidden))):
        to_hidden, to_cell, to_sums, openness, shares = (values[time] for values in by_time)
        to_hidden += below
        if carried is None:
            torch.addcmul(coming, to_hidden, openness, out=to_cell)
            torch.mul(shares[:, :3], to_cell[:, None], out=to_sums[:, :3])
            torch.mul(shares[:, 3], to_hidden, out=to_sums[:, 3])
            coming = to_cell * forgets[time]
        else:
            to_cell.addcmul_(to_hidden, openness).add_(coming)
            to_sums[:, :3].addcmul_(shares[:, :3], to_cell[:, None])
            to_sums[:, 3].addcmul_(shares[:, 3], to_hidden)
            coming = torch.addcmul(carried[time], to_cell, forgets[time])
        below = to_sums.flatten(1) @ states.across
    return below, coming


class SequenceFunction(torch.autograd.Function):
    """One direction of one layer: inputs (T, N, I) to hidden states (T, N, H) and the last cell state."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        ctx.states = states = States(inputs, hidden, cell, weights)
        ctx.save_for_backward(inputs, hidden, cell, *weights)
        return states.hidden[1:].clone(), states.cell[-1].clone()

    @staticmethod
    def backward(ctx: Any, slopes: Tensor, last: Tensor) -> tuple[Tensor | None, ...]:
        return _Slopes.apply(ctx.states, slopes, last, *ctx.saved_tensors)


class _Slopes(torch.autograd.Function):
    """The backward pass of :class:`SequenceFunction` as a function of the slopes that come in and of all that it was made of."""

    @staticmethod
    def forward(ctx: Any, states: States, slopes: Tensor, last: Tensor, *given: Tensor) -> tuple[Tensor | None, ...]:
        ctx.back = back = _Backward(states, slopes, last)
        ctx.biases = len(given) - 5
        by_inputs = back.sums.flatten(2) @ states.into if ctx.needs_input_grad[3] else None
        return by_inputs, *back.first, *back.by_weights(ctx.biases)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, inputs: Tensor | None, hidden: Tensor, cell: Tensor, into: Tensor, across: Tensor, *biases: Tensor
    ) -> tuple[Tensor | None, ...]:
        back, bend = ctx.back, ctx.back.bend
        states: States = back.states
        (room, sums), (to_hidden, to_cell, carried) = bend.room
        inputs = inputs if ctx.needs_input_grad[3] else None
        hiddens, moves, cells = _move(states, room, inputs, hidden, cell, into, across, biases)
        by_gate = moves.unbind(2)
        # What these moves change of everything that the backward pass sent; what they change through later times comes after.
        torch.mul(bend.own, moves, out=sums)
        sums[:, :, 0].addcmul_(bend.cross, by_gate[2])
        sums[:, :, 1].addcmul_(bend.forget, cells[:-1])
        sums[:, :, 2].addcmul_(bend.cross, by_gate[0])
        sums[:, :, 3].addcmul_(bend.out, cells[1:])
        torch.mul(bend.out, by_gate[3], out=to_cell).addcmul_(bend.cell, cells[1:])
        torch.mul(bend.forget, by_gate[1], out=carried)
        # The weights' directions send to the hidden state before.
        torch.matmul(back.sums[1:].flatten(2), across, out=to_hidden[:-1])
        to_hidden[-1] = 0
        first = _send_back(states, to_hidden, to_cell, sums, torch.zeros_like(cell), carried)
        first[0].addmm_(back.sums[0].flatten(1), across)
        flat_sums, flat_sent = sums.flatten(2).flatten(0, 1), back.sums.flatten(2).flatten(0, 1)
        by_into = flat_sums.T @ states.inputs.flatten(0, 1)
        by_across = (flat_sums.T @ states.hidden[:-1].flatten(0, 1)).addmm_(flat_sent.T, hiddens[:-1].flatten(0, 1))
        by_inputs = None
        if inputs is not None:
            by_into.addmm_(flat_sent.T, inputs.flatten(0, 1))
            by_inputs = (flat_sums @ states.into).addmm_(flat_sent, into).view_as(inputs)
        by_biases = [flat_sums.sum(0)] * ctx.biases
        return None, hiddens[1:], cells[-1], by_inputs, *first, by_into, by_across, *by_biases


def _move(
    states: States,
    moves: Tensor,
    inputs: Tensor | None,
    hidden: Tensor,
    cell: Tensor,
    into: Tensor,
    across: Tensor,
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how hidden states, sums (in ``moves``) and cell states move along directions of all that they were made of."""
    flat = moves.flatten(2).flatten(0, 1)
    torch.matmul(states.hidden[:-1].flatten(0, 1), across.T, out=flat).addmm_(states.inputs.flatten(0, 1), into.T)
    if inputs is not None:
        flat.addmm_(inputs.flatten(0, 1), states.into.T)
    if biases:
        flat += biases[0] + biases[1]
    hiddens, cells = carry(states, moves, hidden, cell)
    return hiddens, moves, cells


def carry(
    states: States, sums: Tensor, hidden: Tensor, cell: Tensor, beside: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Go through the times: how hidden and cell states change with the sums, linearly, and these with the hidden state before.

    Args:
        states: What the changes are about.
        sums: How the gates' sums change by all but the hidden state before, which is added in place, (T, N, 4, H).
        hidden: How the first hidden state changes.
        cell: How the first cell state does.
        beside: What is added to the changes of cell and hidden states at each time, (T, N, H) each.

    Returns:
        The changes of hidden and cell states, (T + 1, N, H), with the first ones.
    """
    hiddens, cells = torch.empty_like(states.hidden), torch.empty_like(states.hidden)
    hiddens[0], cells[0] = hidden, cell
    step = torch.empty_like(sums[0])
    for time, moves in enumerate(sums.unbind()):
        moves.flatten(1).addmm_(hiddens[time], states.turned)
        torch.mul(states.shares[time], moves, out=step)
        torch.sum(step[:, :3], 1, out=cells[time + 1]).addcmul_(states.gates[time, :, 1], cells[time])
        if beside is not None:
            cells[time + 1] += beside[0][time]
            step[:, 3] += beside[1][time]
        torch.addcmul(step[:, 3], states.open[time], cells[time + 1], out=hiddens[time + 1])
    return hiddens, cells
