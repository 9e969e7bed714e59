"""Normalisation layers: y = weight * normalised(x) + bias.

LayerNorm, RMSNorm, GroupNorm and InstanceNorm normalise every sample for itself; so does BatchNorm in eval mode. BatchNorm in
train mode does not: a sample moves the batch statistics and so the output of all others. What is returned then is the part of
the gradient that flows through the sample at given batch statistics; it sums to the gradient, and is reported as conditional.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import Dense, accurate
from cockpit_lite.probes.per_sample.rules.rule import Rule, channel_sums, trailing_sums


class PerSampleLayerNorm(Rule):
    """Affine along the last axes, with any leading axes."""

    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def trailing_axes(self, module: Any) -> tuple[int, int]:
        """Only the normalised axes are special."""
        return (len(module.normalized_shape), len(module.normalized_shape))

    def normalized(self, module: Any) -> Tensor:
        """Return the input normalised, before weight and bias."""
        return functional.layer_norm(accurate(module.input0), module.normalized_shape, None, None, module.eps)

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Normalised input times output gradient, summed over positions."""
        return ext.measure(trailing_sums(self.normalized(module) * accurate(g_out[0]), module.weight.shape), module.weight)

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Output gradient, summed over positions."""
        return ext.measure(trailing_sums(accurate(g_out[0]), module.bias.shape), module.bias)


class PerSampleRMSNorm(PerSampleLayerNorm):
    """As LayerNorm, without mean and bias."""

    parameters: ClassVar[tuple[str, ...]] = ("weight",)

    def normalized(self, module: Any) -> Tensor:
        """Return the input over its root mean square."""
        # the default of eps is that of the type the layer calculates in, not of the type we do
        return functional.rms_norm(accurate(module.input0), module.normalized_shape, None, module.eps)


class PerSampleGroupNorm(Rule):
    """Affine along the channels, axis 1."""

    parameters = ("weight", "bias")

    def normalized(self, module: Any) -> Tensor:
        """Return the input normalised, before weight and bias."""
        return functional.group_norm(accurate(module.input0), module.num_groups, None, None, module.eps)

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Normalised input times output gradient, summed over positions."""
        return ext.measure(channel_sums(self.normalized(module) * accurate(g_out[0])), module.weight)

    def bias(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Output gradient, summed over positions."""
        return ext.measure(channel_sums(accurate(g_out[0])), module.bias)


class PerSampleInstanceNorm(PerSampleGroupNorm):
    """Statistics of every sample and channel, or the running ones in eval mode."""

    def normalized(self, module: Any) -> Tensor:
        """Return the input normalised; running statistics are read, never updated."""
        inputs = accurate(module.input0)
        own = module.training or not module.track_running_stats
        mean, variance = (None, None) if own else (module.running_mean, module.running_var)
        return functional.instance_norm(inputs, mean, variance, None, None, own, 0.0, module.eps)


class PerSampleBatchNorm(PerSampleGroupNorm):
    """Statistics of the batch, or the running ones in eval mode."""

    def uses_batch_statistics(self, module: Any) -> bool:
        """In train mode, and whenever no running statistics are kept."""
        return module.training or module.running_mean is None

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Centred input times output gradient, summed over positions, over the deviation."""
        inputs = accurate(module.input0)  # normalising it by batch_norm takes twice as long
        rows = inputs.reshape(*inputs.shape[:2], -1)
        if self.uses_batch_statistics(module):
            count = rows[:, 0].numel()
            centred = rows - rows.sum(2).sum(0).div_(count)[:, None]
            variance = torch.linalg.vector_norm(centred, dim=2).square_().sum(0).div_(count)
        else:
            centred, variance = rows - module.running_mean.to(rows.dtype)[:, None], module.running_var.to(rows.dtype)
        sums = centred.mul_(accurate(g_out[0]).reshape(rows.shape)).sum(2).mul_((variance + module.eps).rsqrt_())
        return ext.measure(Dense(sums), module.weight)
