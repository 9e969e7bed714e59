"""Linear: y = W x + b along the last axis, with any leading axes."""

from __future__ import annotations

from typing import Any

from cockpit_lite.probes.per_sample.forms import OuterProducts
from cockpit_lite.probes.per_sample.rules.rule import Rule, trailing_sums


class PerSampleLinear(Rule):
    """c_n = sum over positions of delta x'."""

    parameters = ("weight", "bias")

    def trailing_axes(self, module: Any) -> tuple[int, int]:
        """Only the last axis is special."""
        return (1, 1)

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """The axes between batch and features are positions."""
        batch_size = g_out[0].shape[0]
        inputs = module.input0.reshape(batch_size, 1, -1, module.in_features)
        deltas = g_out[0].reshape(batch_size, 1, -1, module.out_features)
        return ext.measure(OuterProducts(inputs, deltas, module.weight.shape), module.weight)

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Sum over positions."""
        return ext.measure(trailing_sums(g_out[0], module.bias.shape), module.bias)
