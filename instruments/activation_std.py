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

from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATIONS, Instrument, Readings, layerwise
from cockpit_lite.step import Step


def pooled_std(variances: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the standard deviation within the modules: differences between their means do not count."""
    total = sum(counts)
    return (variances * variances.new_tensor([count / total for count in counts])).sum().sqrt()


class ActivationStd(Instrument):
    """Writes ``activation_std`` and ``activation_std/<module>``, in the unit of the outputs."""

    name = "activation_std"
    needs = (ACTIVATIONS,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        activations = step.activations
        if not activations.modules:
            raise NotMeasured("no layer of the model was called on this step")
        by_module = dict(zip(activations.modules, activations.variances.sqrt().unbind(), strict=True))
        whole = pooled_std(activations.variances, activations.counts)
        return {"activation_std": whole, **layerwise("activation_std", by_module)}
