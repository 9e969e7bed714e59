"""Activation scale: the standard deviation of what the layers put out, by layer and over all of them.

    activation_std/<module> = sqrt( mean of (a - mean a)^2 over the module's outputs a: samples, positions and units )
    activation_std          = the same within the modules, pooled: sqrt( sum of squared deviations / number of outputs )

By depth it should stay on one scale. Falling or growing by the same factor from layer to layer: signal, and with it the
gradient, vanishes or explodes with depth; initialise for the activation function, or normalise. Zero: the layer puts out the same
for every sample. Growing over time in every layer: the weights drift away.

Source: Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATIONS, Instrument, Readings, layerwise
from cockpit_lite.probes.activations import Moments
from cockpit_lite.step import Step


def pooled_moments(calls: Sequence[Moments]) -> Moments:
    """Return the moments of the outputs of all calls taken together."""
    if len(calls) == 1:
        return calls[0]
    count = sum(call.count for call in calls)
    device = calls[0].mean.device
    shares = torch.tensor([call.count / count for call in calls], device=device)
    means = torch.stack([call.mean.to(device) for call in calls])
    variances = torch.stack([call.variance.to(device) for call in calls])
    shares = shares.to(means.dtype)
    mean = (shares * means).sum()
    return Moments(count, mean, (shares * (variances + (means - mean).square())).sum())


def pooled_std(modules: Sequence[Moments]) -> Tensor:
    """Return the standard deviation within the modules: differences between their means do not count."""
    count = sum(module.count for module in modules)
    device = modules[0].variance.device
    return torch.stack([module.variance.to(device) * (module.count / count) for module in modules]).sum().sqrt()


class ActivationStd(Instrument):
    """Writes ``activation_std`` and ``activation_std/<module>``, in the unit of the outputs."""

    name = "activation_std"
    needs = (ACTIVATIONS,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        modules = {name: pooled_moments(calls) for name, calls in step.activations.moments.items()}
        if not modules:
            raise NotMeasured("no layer of the model was called on this step")
        by_module = {name: moments.variance.sqrt() for name, moments in modules.items()}
        return {"activation_std": pooled_std(list(modules.values())), **layerwise("activation_std", by_module)}
