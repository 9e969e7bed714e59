"""Linear: y = W x + b along the last axis, with any leading axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from cockpit_lite.probes.per_sample.forms import Form, OuterProducts, Side, Sums
from cockpit_lite.probes.per_sample.rules.rule import Rule


class PerSampleLinear(Rule):
    """c_n = sum over positions of delta x'."""

    parameters = ("weight", "bias")

    def trailing_axes(self, module: Any) -> tuple[int, int]:
        """Only the last axis is special."""
        return (1, 1)

    def measure_all(self, ext: Any, module: Any, names: Iterable[str], g_inp: Any, g_out: Sequence[Tensor]) -> dict[str, Any]:
        """Weight and bias share the output gradients."""
        deltas = _side(g_out[0], module.out_features)
        measured = {}
        for name in names:
            if name == "weight":
                form: Form = OuterProducts(_side(module.input0, module.in_features), deltas, module.weight.shape)
            else:
                form = Sums(deltas)
            measured[name] = ext.measure(form, module._parameters[name])
        return measured

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """The axes between batch and features are positions."""
        return self.measure_all(ext, module, ("weight",), g_inp, g_out)["weight"]

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Sum over positions."""
        return self.measure_all(ext, module, ("bias",), g_inp, g_out)["bias"]


def _side(values: Tensor, features: int) -> Side:
    return Side(values if values.dim() == 2 else values.reshape(values.shape[0], 1, -1, features))
