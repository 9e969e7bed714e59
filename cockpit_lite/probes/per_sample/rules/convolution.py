"""Convolutions and transposed convolutions in one to three dimensions, with groups, dilation, any padding and padding mode.

A convolution is a Linear on patches of the padded input; a transposed one is the convolution that leads from its output back
to its input, so the two tensors change places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import Chunks, OuterProducts, accurate
from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.rules.rule import Rule, channel_sums


def padded(inputs: Tensor, module: Any) -> Tensor:
    """Return the input as the kernel sees it, with the padding written out."""
    if not any(module._reversed_padding_repeated_twice):
        return inputs
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, module._reversed_padding_repeated_twice, mode=mode)


def patches(inputs: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """Return the patches under the kernel, shape (N, groups, positions, channels of the group * kernel elements)."""
    windows = inputs
    for axis, (size, step, gap) in enumerate(zip(kernel_size, stride, dilation, strict=True), start=2):
        windows = windows.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    batch_size, channels = inputs.shape[:2]
    windows = windows.reshape(batch_size, groups, channels // groups, *windows.shape[2:])
    spatial = len(kernel_size)
    # positions last, where the memory of a row of the image stays together; the matrix products take them transposed
    order = (0, 1, 2, *range(3 + spatial, 3 + 2 * spatial), *range(3, 3 + spatial))
    positions = windows.shape[3 : 3 + spatial].numel()
    return windows.permute(order).reshape(batch_size, groups, -1, positions).transpose(2, 3)


def by_group(deltas: Tensor, groups: int) -> Tensor:
    """Return (N, groups, positions, channels of the group) from (N, channels, *)."""
    return deltas.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)


class PerSampleConvolution(Rule):
    """c_n = sum over positions of delta patch'."""

    parameters = ("weight", "bias")

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Outer products of output gradients and patches, which are many times as large as the input."""

        def some(samples: slice) -> OuterProducts:
            inputs = padded(accurate(module.input0[samples]), module)
            windows = patches(inputs, module.kernel_size, module.stride, module.dilation, module.groups)
            return OuterProducts(windows, by_group(g_out[0][samples], module.groups), module.weight.shape)

        batch_size = g_out[0].shape[0]
        positions = g_out[0].shape[2:].numel()
        fitting = base.CHUNK // max(1, module.in_channels * module.weight.shape[2:].numel() * positions)
        chunked = fitting < batch_size
        form = Chunks(some, batch_size, fitting, module.weight.shape) if chunked else some(slice(None))
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
