"""The gates of one recurrent layer in one direction: from the gradients at its outputs to those before its gates.

All hidden states of the call are known, so the gates of all times come from one matrix product, and all that depends on them
alone is calculated for all times at once. What is left of the way back through time is one product with the recurrent weight
and a few elementwise operations a time.

Gates in torch's order: LSTM input, forget, cell, output; GRU reset, update, new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.kernels import WayBack

#: At about so many times the outputs of an LSTM are repeated: the hyperbolic tangent of all cells takes longer than the rest.
CHECKED = 4
ALL = slice(None)


class Weights(NamedTuple):
    """Weights of one layer in one direction."""

    incoming: Tensor
    recurrent: Tensor
    incoming_bias: Tensor | None
    recurrent_bias: Tensor | None


class Gradients(NamedTuple):
    """What comes out.

    Attributes:
        outputs: The outputs as repeated from the hidden states one time before, shape (times, N, H).
        times: The times at which they were repeated.
        incoming: Gradients at the product with the incoming weight, shape (T, N, gates * H).
        recurrent: The same at the product with the recurrent weight.
        sent_back: What they send back to the hidden states one time before, along one direction; as it was read off, and as it
            follows from them. ``None``: nothing was read off.
    """

    outputs: Tensor
    times: slice
    incoming: Tensor
    recurrent: Tensor
    sent_back: tuple[Tensor, Tensor] | None = None


def through_gates(
    mode: str,
    weights: Weights,
    inputs: Tensor,
    before: Tensor,
    outputs: Tensor,
    delta: Tensor,
    cell: Tensor | None,
    cell_delta: Tensor | None,
    activated: Tensor | None = None,
    way_back: WayBack | None = None,
) -> Gradients:
    """Go back through one layer.

    Args:
        mode: ``module.mode`` of the layer.
        weights: Of the layer.
        inputs: Shape (T, N, I).
        before: Hidden states one time before, shape (T, N, H).
        outputs: Hidden states, shape (T, N, H).
        delta: Gradients at the outputs, that of the final hidden state at the last of them, shape (T, N, H). Overwritten.
        cell: Cell state at the beginning, of an LSTM.
        cell_delta: Gradient at the final cell state, if any.
        activated: The gates of an LSTM after their activations, shape (T, N, 4 H), if they are known.
        way_back: What its kernel has sent back through time, if that is known, too.
    """
    if mode == "LSTM":
        assert cell is not None
        if activated is not None and way_back is not None:
            return _lstm_at_once(activated, weights.recurrent, outputs, delta, cell, cell_delta, way_back)
        gates = _gates(weights, inputs, before) if activated is None else activated
        return _lstm(gates, weights.recurrent, outputs, delta, cell, cell_delta)
    incoming = functional.linear(inputs, weights.incoming, weights.incoming_bias)
    recurrent = functional.linear(before, weights.recurrent, weights.recurrent_bias)
    if mode == "GRU":
        return _gru(incoming, recurrent, weights.recurrent, before, delta)
    before_activation = incoming.add_(recurrent)
    repeated = before_activation.relu() if mode == "RNN_RELU" else before_activation.tanh()
    slope = (repeated > 0).to(repeated.dtype) if mode == "RNN_RELU" else 1 - repeated.square()
    _, found = _back(slope[:, :, None], weights.recurrent, delta, None)
    return Gradients(repeated, ALL, found, found)


def _back(slopes: Tensor, recurrent: Tensor, delta: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients at the hidden states, and before the gates; these are the former times ``slopes``.

    Args:
        slopes: Shape (T, N, gates, H).
        recurrent: The recurrent weight.
        delta: Gradients at the outputs.
        kept: The part of a hidden state that goes on to the next one directly; ``None``: nothing.
    """
    found = torch.empty_like(slopes)
    flat = found.flatten(2)
    hidden = torch.empty_like(delta)
    for time in reversed(range(len(delta))):
        if time + 1 == len(delta):
            hidden[time] = delta[time]
        else:
            torch.addmm(delta[time], flat[time + 1], recurrent, out=hidden[time])
            if kept is not None:
                hidden[time].addcmul_(hidden[time + 1], kept[time + 1])
        torch.mul(hidden[time][:, None], slopes[time], out=found[time])
    return hidden, flat


def _gru(incoming: Tensor, recurrent: Tensor, weight: Tensor, before: Tensor, delta: Tensor) -> Gradients:
    size = before.shape[-1]
    reset, update = (incoming[..., : 2 * size] + recurrent[..., : 2 * size]).sigmoid_().chunk(2, -1)
    behind = recurrent[..., 2 * size :]
    new = torch.addcmul(incoming[..., 2 * size :], reset, behind).tanh_()
    at_new = (1 - update) * (1 - new.square())
    at_reset = at_new * behind * reset * (1 - reset)
    at_update = (before - new) * update * (1 - update)
    # the reset gate multiplies the recurrent part of the third gate
    hidden, found = _back(torch.stack([at_reset, at_update, at_new * reset], 2), weight, delta, update)
    return Gradients(torch.lerp(new, before, update), ALL, torch.cat([found[..., : 2 * size], hidden * at_new], -1), found)


def _gates(weights: Weights, inputs: Tensor, before: Tensor) -> Tensor:
    """Return the gates of an LSTM after their activations."""
    biases = [bias for bias in (weights.incoming_bias, weights.recurrent_bias) if bias is not None]
    gates = functional.linear(inputs, weights.incoming, torch.stack(biases).sum(0) if biases else None)
    gates.flatten(0, 1).addmm_(before.flatten(0, 1), weights.recurrent.T)
    new = gates.chunk(4, -1)[2]
    new.mul_(2)  # tanh(x) = 2 sigmoid(2 x) - 1, and the sigmoid takes a third of the time
    gates.sigmoid_()
    new.mul_(2).sub_(1)
    return gates


def _lstm(gates: Tensor, weight: Tensor, outputs: Tensor, delta: Tensor, cell: Tensor, cell_delta: Tensor | None) -> Gradients:
    size, count = delta.shape[-1], len(delta)
    incoming, forget, new, output = gates.chunk(4, -1)
    gain = incoming * new
    cells = torch.empty(count + 1, *cell.shape, dtype=cell.dtype, device=cell.device)
    cells[0] = cell
    each = cells.unbind()
    for more, kept, before, now in zip(gain.unbind(), forget.unbind(), each, each[1:], strict=False):
        torch.addcmul(more, kept, before, out=now)
    at_cell = _through_output(outputs, output).unbind()
    # What is found holds the slopes of the gates at first: these are large, and memory is what takes the time.
    found = gates.new_empty(gates.shape)
    slopes = found.unflatten(2, (4, size))
    passed = cells[:-1] * forget
    torch.addcmul(gain, gain, incoming, value=-1, out=slopes[:, :, 0])
    torch.addcmul(passed, passed, forget, value=-1, out=slopes[:, :, 1])
    torch.addcmul(incoming, gain, new, value=-1, out=slopes[:, :, 2])
    torch.addcmul(outputs, outputs, output, value=-1, out=slopes[:, :, 3])
    rows, kept_parts, deltas = found.unbind(), forget.unbind(), delta.unbind()
    through_cell, through_output = slopes[:, :, :3].unbind(), slopes[:, :, 3].unbind()
    carried = torch.zeros_like(cell) if cell_delta is None else cell_delta.clone()
    for_all = carried[:, None]
    for time in reversed(range(count)):
        hidden = deltas[time]
        if time + 1 < count:
            hidden.addmm_(rows[time + 1], weight)
        carried.addcmul_(hidden, at_cell[time])
        through_cell[time].mul_(for_all)
        through_output[time].mul_(hidden)
        carried.mul_(kept_parts[time])
    times = _checked(count)
    return Gradients(cells[1:][times].tanh().mul_(output[times]), times, found, found)


def _lstm_at_once(
    gates: Tensor, weight: Tensor, outputs: Tensor, delta: Tensor, cell: Tensor, cell_delta: Tensor | None, way_back: WayBack
) -> Gradients:
    """Do the same for all times at once: what each has sent back to the one before is known."""
    incoming, forget, new, output = gates.chunk(4, -1)
    cells, gain = torch.cat([cell[None], way_back.cells]), incoming * new
    passed = cells * forget
    delta[:-1].add_(way_back.hidden[1:])
    carried = _through_output(outputs, output).mul_(delta)
    carried[:-1].add_(way_back.carried[1:])
    if cell_delta is not None:
        carried[-1].add_(cell_delta)
    found = torch.empty_like(gates)
    at_incoming, at_forget, at_new, at_output = found.chunk(4, -1)
    torch.addcmul(gain, gain, incoming, value=-1, out=at_incoming).mul_(carried)
    torch.addcmul(passed, passed, forget, value=-1, out=at_forget).mul_(carried)
    torch.addcmul(incoming, gain, new, value=-1, out=at_new).mul_(carried)
    torch.addcmul(outputs, outputs, output, value=-1, out=at_output).mul_(delta)
    times = _checked(len(delta))
    repeated = (passed[times] + gain[times]).tanh_().mul_(output[times])
    direction = torch.linspace(-1, 1, weight.shape[1], dtype=weight.dtype, device=weight.device).cos()
    return Gradients(repeated, times, found, found, (way_back.hidden @ direction, found @ (weight @ direction)))


def _through_output(outputs: Tensor, output: Tensor) -> Tensor:
    """Return the slopes of the outputs along the cells. The hyperbolic tangent of these is outputs / output gate."""
    return torch.addcdiv(output, outputs.square(), output.clamp(min=torch.finfo(output.dtype).tiny), value=-1)


def _checked(count: int) -> slice:
    """Return the times at which the outputs are repeated, the last one included: errors go on from cell to cell."""
    step = max(1, count // CHECKED)
    return slice((count - 1) % step, None, step)


def run(mode: str, weights: Weights, inputs: Tensor, start: Sequence[Tensor]) -> Tensor:
    """Return the outputs of one layer in one direction, by torch's own kernel."""
    parameters = [weight for weight in weights if weight is not None]
    options = (parameters, weights.incoming_bias is not None, 1, 0.0, False, False, False)
    if mode == "LSTM":
        return torch._VF.lstm(inputs, list(start), *options)[0]
    return _KERNELS[mode](inputs, start[0], *options)[0]


_KERNELS = {"RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu, "GRU": torch._VF.gru}
