"""Normalisation layers: y = weight * normalised(x) + bias.

LayerNorm, RMSNorm, GroupNorm and InstanceNorm normalise every sample for itself; so does BatchNorm in eval mode. BatchNorm in
train mode does not: a sample moves the batch statistics and so the output of all others. What is returned then is the part of
the gradient that flows through the sample at given batch statistics; it sums to the gradient, and is reported as conditional.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import Dense, accurate
from cockpit_lite.probes.per_sample.rules.rule import Rule, channel_sums, trailing_sums


class PerSampleLayerNorm(Rule):
    """Affine along the last axes, with any leading axes.

    What the probe could read off the user's own kernel (``module.statistics``: mean, and one over the deviation) is not
    calculated again.
    """

    parameters: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def trailing_axes(self, module: Any) -> tuple[int, int]:
        """Only the normalised axes are special."""
        return (len(module.normalized_shape), len(module.normalized_shape))

    def normalized(self, module: Any) -> Tensor:
        """Return the input normalised, before weight and bias."""
        return functional.layer_norm(accurate(module.input0), module.normalized_shape, None, None, module.eps)

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """Normalised input times output gradient, summed over positions."""
        deltas, known = accurate(g_out[0]), module.__dict__.get("statistics")
        if known is None:
            return ext.measure(trailing_sums(self.normalized(module) * deltas, module.weight.shape), module.weight)
        inputs, shape = accurate(module.input0), module.weight.shape
        samples, positions = len(inputs), inputs.shape[1 : inputs.dim() - len(shape)].numel()
        mean, scale = (values.to(inputs.dtype).reshape(samples, 1, positions) for values in known)
        centred = inputs.reshape(samples, positions, shape.numel()) - mean.mT
        sums = torch.bmm(scale, centred.mul_(deltas.to(inputs.dtype).reshape(centred.shape)))
        return ext.measure(Dense(sums.reshape(samples, *shape)), module.weight)

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


#: From so many positions on torch's own kernel for a CPU, a loop over samples and channels, beats elementwise operations.
MANY_POSITIONS = 16


class PerSampleBatchNorm(PerSampleGroupNorm):
    """Statistics of the batch, or the running ones in eval mode.

    What the probe could read off the user's own kernel (``module.statistics``: mean, and one over the deviation) is not
    calculated again.
    """

    def uses_batch_statistics(self, module: Any) -> bool:
        """In train mode, and whenever no running statistics are kept."""
        return module.training or module.running_mean is None

    def measure_all(self, ext: Any, module: Any, names: Iterable[str], g_inp: Any, g_out: Any) -> dict[str, Any]:
        """Centred input times output gradient, summed over positions, over the deviation; and the gradient summed."""
        deltas = accurate(g_out[0])
        found = {"bias": channel_sums(deltas)} if "weight" not in names else self._both(module, accurate(module.input0), deltas)
        return {name: ext.measure(found[name], module._parameters[name]) for name in names}

    def weight(self, ext: Any, module: Any, g_inp: Any, g_out: Any, bpQuantities: Any) -> Any:
        """As all."""
        return self.measure_all(ext, module, ("weight",), g_inp, g_out)["weight"]

    def _both(self, module: Any, inputs: Tensor, deltas: Tensor) -> dict[str, Dense]:
        mean, scale = (values.to(inputs.dtype) for values in self._statistics(module, inputs))
        samples, channels, positions = *inputs.shape[:2], inputs.shape[2:].numel()
        if positions < MANY_POSITIONS or inputs.dtype != deltas.dtype or not inputs.is_cpu:
            centred = inputs.reshape(samples, channels, positions) - mean[:, None]
            sums = centred.mul_(deltas.reshape(centred.shape)).sum(2).mul_(scale)
            return {"weight": Dense(sums), "bias": channel_sums(deltas)}
        # the channels of every sample, as if they were as many channels of one: the kernel goes through both tensors once
        rows = [values.reshape(1, samples * channels, positions) for values in (deltas, inputs)]
        each = [values.expand(samples, channels).reshape(-1) for values in (mean, scale)]
        _, weight, bias = torch.ops.aten.native_batch_norm_backward(
            *rows, None, None, None, *each, True, module.eps, [False, True, True]
        )
        return {"weight": Dense(weight.view(samples, channels)), "bias": Dense(bias.view(samples, channels))}

    def _statistics(self, module: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean of every channel, and one over its deviation."""
        if not self.uses_batch_statistics(module):
            return module.running_mean, (module.running_var.to(inputs.dtype) + module.eps).rsqrt()
        known: tuple[Tensor, Tensor] | None = module.__dict__.get("statistics")
        if known is not None:
            return known
        rows = inputs.reshape(*inputs.shape[:2], -1)
        count = rows[:, 0].numel()
        mean = rows.sum(2).sum(0).div_(count)
        variance = torch.linalg.vector_norm(rows - mean[:, None], dim=2).square_().sum(0).div_(count)
        return mean, variance.add_(module.eps).rsqrt_()
