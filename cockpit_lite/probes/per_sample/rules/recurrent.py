"""RNN, LSTM and GRU with any number of layers, in both directions, batch or time first.

All weights of a layer act before its gates: c_n = sum over time of dz_t x_t' and of dz_t h_(t-1)'. The gradients dz at the gates
come out of the fused kernel itself: it is run once more with the projected inputs x W' + b as its inputs and the identity as its
input weight, and differentiated with respect to these inputs. In a GRU the reset gate multiplies the hidden part of the third
gate.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import Dense, Form, OuterProducts, accurate
from cockpit_lite.probes.per_sample.rules.rule import NoRule, Rule, agrees

_KERNELS = {"RNN_TANH": torch._VF.rnn_tanh, "RNN_RELU": torch._VF.rnn_relu, "GRU": torch._VF.gru}


class PerSampleRecurrent(Rule):
    """All parameters from one repetition of the call."""

    def names(self, module: Any) -> tuple[str, ...]:
        """The number of layers and directions gives the parameters their names."""
        return tuple(module._parameters)

    def batch_axis(self, module: Any) -> int:
        """The second axis, if not asked otherwise."""
        return 0 if module.batch_first else 1

    def measure_all(
        self, ext: Any, module: Any, names: Iterable[str], g_inp: Any, g_out: Sequence[Tensor | None]
    ) -> dict[str, Any]:
        """Repeat the call and read the gradients at the gates."""
        if not isinstance(module.input0, Tensor) or module.input0.dim() != 3:
            raise NoRule(f"{type(module).__name__} on packed sequences or without a batch")
        if module.dropout > 0 and module.training and module.num_layers > 1:
            raise NoRule(f"{type(module).__name__} with dropout between its layers")
        if getattr(module, "proj_size", 0):
            raise NoRule(f"{type(module).__name__} with projections")
        forms = self._forms(module, g_out)
        return {name: ext.measure(forms[name], module._parameters[name]) for name in names}

    def _forms(self, module: Any, g_out: Sequence[Tensor | None]) -> dict[str, Form]:
        weights = {name: accurate(parameter) for name, parameter in module._parameters.items()}
        inputs = accurate(module.input0)
        inputs = inputs.transpose(0, 1) if module.batch_first else inputs
        directions = ("", "_reverse") if module.bidirectional else ("",)
        states = self._states(module, inputs, len(directions))
        gates: dict[str, Tensor] = {}
        layer_inputs, hidden_before, hidden_last, cell_last = [], {}, [], []
        with torch.enable_grad():
            for layer in range(module.num_layers):
                layer_inputs.append(inputs)
                outputs = []
                for number, suffix in enumerate(directions):
                    key = f"l{layer}{suffix}"
                    projected = functional.linear(inputs, weights[f"weight_ih_{key}"], weights.get(f"bias_ih_{key}"))
                    gates[key] = projected if projected.requires_grad else projected.requires_grad_()
                    start = [state[layer * len(directions) + number : layer * len(directions) + number + 1] for state in states]
                    sequence = gates[key].flip(0) if suffix else gates[key]
                    found, last, cell = _run(module.mode, sequence, start, weights, key)
                    before = torch.cat([start[0], found[:-1]])
                    hidden_before[key] = before.detach().flip(0) if suffix else before.detach()
                    outputs.append(found.flip(0) if suffix else found)
                    hidden_last.append(last)
                    cell_last.append(cell)
                inputs = torch.cat(outputs, -1)
            repeated = [inputs.transpose(0, 1) if module.batch_first else inputs, torch.cat(hidden_last)]
            if module.mode == "LSTM":
                repeated.append(torch.cat([cell for cell in cell_last if cell is not None]))
            if not agrees(repeated[0], module.output):
                raise NoRule(f"the call of {type(module).__name__} could not be repeated")
            arrived = [(out, delta.to(out.dtype)) for out, delta in zip(repeated, g_out, strict=False) if delta is not None]
            deltas = torch.autograd.grad([out for out, _ in arrived], list(gates.values()), [delta for _, delta in arrived])
        forms: dict[str, Form] = {}
        for number, (key, delta) in enumerate(zip(gates, deltas, strict=True)):
            hidden_delta = delta
            if module.mode == "GRU":
                hidden_delta = self._behind_reset(delta, gates[key].detach(), hidden_before[key], weights, key)
            below = layer_inputs[number // len(directions)].detach()
            for kind, incoming, at in (("ih", below, delta), ("hh", hidden_before[key], hidden_delta)):
                positions = at.transpose(0, 1)
                shape = weights[f"weight_{kind}_{key}"].shape
                forms[f"weight_{kind}_{key}"] = OuterProducts(incoming.transpose(0, 1)[:, None], positions[:, None], shape)
                forms[f"bias_{kind}_{key}"] = Dense(positions.sum(1))
        return forms

    @staticmethod
    def _states(module: Any, inputs: Tensor, directions: int) -> list[Tensor]:
        """Return the initial states, zeros where none were given."""
        given = getattr(module, "input1", None)
        if given is not None:
            return [accurate(state) for state in ((given,) if isinstance(given, Tensor) else given)]
        zeros = inputs.new_zeros(module.num_layers * directions, inputs.shape[1], module.hidden_size)
        return [zeros, zeros] if module.mode == "LSTM" else [zeros]

    @staticmethod
    def _behind_reset(delta: Tensor, projected: Tensor, hidden: Tensor, weights: dict[str, Tensor], key: str) -> Tensor:
        """Return the gradient at the hidden part of a GRU's gates: the third one lies behind the reset gate."""
        size = hidden.shape[-1]
        bias = weights.get(f"bias_hh_{key}")
        recurrent = functional.linear(hidden, weights[f"weight_hh_{key}"][:size], None if bias is None else bias[:size])
        reset = torch.sigmoid(projected[..., :size] + recurrent)
        return torch.cat([delta[..., : 2 * size], delta[..., 2 * size :] * reset], -1)


def _run(
    mode: str, projected: Tensor, start: Sequence[Tensor], weights: dict[str, Tensor], key: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run one layer in one direction on inputs that are projected already; return outputs, last hidden and last cell state."""
    width = projected.shape[-1]
    identity = torch.eye(width, dtype=projected.dtype, device=projected.device)
    parameters = [identity, weights[f"weight_hh_{key}"]]
    biases = f"bias_hh_{key}" in weights
    if biases:
        parameters += [torch.zeros_like(weights[f"bias_hh_{key}"]), weights[f"bias_hh_{key}"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights are not one block of memory
        options = (parameters, biases, 1, 0.0, True, False, False)
        if mode == "LSTM":
            return torch._VF.lstm(projected, list(start), *options)
        outputs, last = _KERNELS[mode](projected, start[0], *options)
    return outputs, last, None
