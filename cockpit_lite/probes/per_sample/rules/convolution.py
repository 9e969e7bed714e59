"""Convolutions and transposed convolutions in one to three dimensions, with groups, dilation, any padding and padding mode.

A convolution is a Linear on patches of the padded input; a transposed one is the convolution that leads from its output back
to its input, so the two tensors change places.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import OuterProducts, Windows, accurate
from cockpit_lite.probes.per_sample.forms.windows import by_group, patches
from cockpit_lite.probes.per_sample.rules.rule import Rule, channel_sums


def _padding(inputs: Tensor, module: Any) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return the input with what is not zeros of its padding written out, and the zeros before and behind it by axis."""
    sizes = module._reversed_padding_repeated_twice
    if module.padding_mode != "zeros" and any(sizes):
        return functional.pad(inputs, sizes, mode=module.padding_mode), [(0, 0)] * (len(sizes) // 2)
    return inputs, list(zip(sizes[-2::-2], sizes[-1::-2], strict=True))


class PerSampleConvolution(Rule):
    """c_n = sum over positions of delta patch'."""

    parameters = ("weight", "bias")

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Outer products of output gradients and windows of the input."""
        inputs, zeros = _padding(accurate(module.input0), module)
        form = Windows(inputs, g_out[0], module.stride, module.dilation, module.groups, module.weight.shape, zeros)
        return ext.measure(form, module.weight)

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Sum over positions."""
        return ext.measure(channel_sums(g_out[0]), module.bias)


class PerSampleTransposedConvolution(Rule):
    """The output gradient is what the kernel slides over, the input is what it meets there."""

    parameters = ("weight", "bias")

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Outer products of inputs and patches of the output gradient."""
        deltas = accurate(g_out[0])
        padding = [size for size in reversed(module.padding) for _ in range(2)]
        windows = patches(functional.pad(deltas, padding), module.kernel_size, module.stride, module.dilation, module.groups)
        # output_padding adds rows of the output that no further input reaches: the surplus windows start behind the last input
        spatial = len(module.kernel_size)
        reached = [
            (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
            for size, pad, gap, kernel, step in zip(
                deltas.shape[2:], module.padding, module.dilation, module.kernel_size, module.stride, strict=True
            )
        ]
        windows = windows.unflatten(2, reached)
        for axis, size in enumerate(module.input0.shape[2:]):
            windows = windows.narrow(2 + axis, 0, size)
        windows = windows.flatten(2, 1 + spatial)
        inputs = by_group(module.input0, module.groups)
        return ext.measure(OuterProducts(windows, inputs, module.weight.shape), module.weight)

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Sum over positions."""
        return ext.measure(channel_sums(g_out[0]), module.bias)
