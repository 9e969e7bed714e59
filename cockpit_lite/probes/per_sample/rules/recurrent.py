"""RNN, LSTM and GRU with any number of layers, in both directions, batch or time first.

All weights of a layer act before its gates: c_n = sum over time of dz_t x_t' and of dz_t h_(t-1)'. The hidden states h of the
last layer are the user's own output, those below are run once more; the gradients dz before the gates follow in closed form
(:mod:`cockpit_lite.probes.per_sample.rules.gates`). That the outputs come out again of the states one time before is checked.
What the probe could read off the user's own kernels (:mod:`cockpit_lite.probes.per_sample.kernels`) is not calculated again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import Form, OuterProducts, Side, Sums, accurate
from cockpit_lite.probes.per_sample.rules.gates import Gradients, Weights, run, through_gates
from cockpit_lite.probes.per_sample.rules.rule import NoRule, Rule, agrees, require_whole


class PerSampleRecurrent(Rule):
    """All parameters from one repetition of the call."""

    repeats: ClassVar[bool] = True

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

    @torch.no_grad()
    def _forms(self, module: Any, g_out: Sequence[Tensor | None]) -> dict[str, Form]:
        require_whole(module, module.parameters())
        directions = ("", "_reverse") if module.bidirectional else ("",)
        keys = [[f"l{layer}{suffix}" for suffix in directions] for layer in range(module.num_layers)]
        weights = {key: _weights(module, key) for layer in keys for key in layer}
        inputs = _time_first(module, module.input0)
        assert inputs is not None
        states = self._states(module, inputs, len(directions))
        starts = {key: [state[number] for state in states] for number, key in enumerate(key for layer in keys for key in layer)}
        known, kernels = _time_first(module, module.output), module.__dict__.get("kernels", {})
        layer_inputs, outputs = [inputs], []
        for layer in keys:
            if layer is keys[-1] and known is not None:
                outputs.append(dict(zip(layer, known.chunk(len(directions), -1), strict=True)))
            elif kernels and layer is not keys[-1]:
                outputs.append({key: kernels[key].outputs for key in layer})
                layer_inputs.append(torch.cat(list(outputs[-1].values()), -1))
            else:
                outputs.append({key: _run(module.mode, weights[key], layer_inputs[-1], starts[key], key) for key in layer})
                layer_inputs.append(torch.cat(list(outputs[-1].values()), -1))
        arrived = [*g_out, None, None, None]
        delta = _time_first(module, arrived[0])
        last, cell = (None if at is None else accurate(at).to(inputs.dtype) for at in arrived[1:3])
        forms: dict[str, Form] = {}
        for position, layer in reversed(list(enumerate(keys))):
            below = layer_inputs[position]
            parts = [None] * len(layer) if delta is None else delta.to(inputs.dtype).chunk(len(layer), -1)
            delta = torch.zeros_like(below)
            for number, (key, part) in enumerate(zip(layer, parts, strict=True)):
                flipped = number == 1
                state = position * len(layer) + number
                found = outputs[position][key]
                sequences = [tensor.flip(0) if flipped else tensor for tensor in (below, found)]
                before = torch.cat([starts[key][0][None], sequences[1][:-1]])
                arriving = partial(_arriving, part, found, None if last is None else last[state], flipped)
                through = partial(
                    through_gates,
                    module.mode,
                    weights[key],
                    sequences[0],
                    before,
                    sequences[1],
                    cell=starts[key][1] if module.mode == "LSTM" else None,
                    cell_delta=None if cell is None else cell[state],
                )
                kernel = kernels.get(key)
                read = {} if kernel is None else {"activated": kernel.gates, "way_back": kernel.way_back}
                gates = through(arriving(), **read)
                agree = _agree(gates, sequences[1])
                if kernel is not None and not agree:  # perhaps it keeps something else
                    gates = through(arriving())
                    agree = _agree(gates, sequences[1])
                if not agree:
                    raise NoRule(f"the call of {type(module).__name__} could not be repeated")
                incoming = _side(gates.incoming)
                recurrent = incoming if gates.recurrent is gates.incoming else _side(gates.recurrent)
                for kind, entering, side in (("ih", sequences[0], incoming), ("hh", before, recurrent)):
                    shape = module._parameters[f"weight_{kind}_{key}"].shape
                    forms[f"weight_{kind}_{key}"] = OuterProducts(entering.transpose(0, 1)[:, None], side, shape)
                    forms[f"bias_{kind}_{key}"] = Sums(side)
                if position:
                    back = gates.incoming @ weights[key].incoming
                    delta += back.flip(0) if flipped else back
        return forms

    @staticmethod
    def _states(module: Any, inputs: Tensor, directions: int) -> list[Tensor]:
        """Return the initial states, zeros where none were given."""
        given = getattr(module, "input1", None)
        if given is not None:
            return [accurate(state) for state in ((given,) if isinstance(given, Tensor) else given)]
        zeros = inputs.new_zeros(module.num_layers * directions, inputs.shape[1], module.hidden_size)
        return [zeros, zeros] if module.mode == "LSTM" else [zeros]


def _agree(gates: Gradients, outputs: Tensor) -> bool:
    """Whether the user's outputs follow from the gates; and from the gradients at these what was read off, if anything was."""
    if gates.sent_back is not None:
        read, following = gates.sent_back
        if not bool((read - following).abs().max() <= 1e-3 * following.abs().max()):
            return False
    return agrees(gates.outputs, outputs[gates.times])


def _weights(module: Any, key: str) -> Weights:
    biases = [module._parameters.get(f"bias_{kind}_{key}") for kind in ("ih", "hh")]
    return Weights(
        accurate(module._parameters[f"weight_ih_{key}"]),
        accurate(module._parameters[f"weight_hh_{key}"]),
        *(None if bias is None else accurate(bias) for bias in biases),
    )


def _time_first(module: Any, tensor: Tensor | None) -> Tensor | None:
    """Return the tensor in the order (time, samples, features)."""
    if tensor is None:
        return None
    return accurate(tensor).transpose(0, 1) if module.batch_first else accurate(tensor)


def _arriving(part: Tensor | None, like: Tensor, final: Tensor | None, flipped: bool) -> Tensor:
    """Return the gradients at the outputs in the order in which the times are gone through, in memory of their own.

    Args:
        part: What arrived at the outputs; ``None``: nothing.
        like: The outputs.
        final: What arrived at the final state.
        flipped: Whether the last time is gone through first.
    """
    if part is None:
        found = torch.zeros_like(like)
    else:
        found = part.flip(0) if flipped else part.clone(memory_format=torch.contiguous_format)
    if final is not None:
        found[-1] += final
    return found


def _side(deltas: Tensor) -> Side:
    """Return what the weights of a layer share."""
    return Side(deltas.transpose(0, 1)[:, None])


def _run(mode: str, weights: Weights, inputs: Tensor, start: Sequence[Tensor], key: str) -> Tensor:
    backward = key.endswith("_reverse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the weights are not one block of memory
        outputs = run(mode, weights, inputs.flip(0) if backward else inputs, [state[None] for state in start])
    return outputs.flip(0) if backward else outputs
