"""Activation mean: the mean of what the layers put out, by layer and over all of them.

    activation_mean/<module> = mean of the module's outputs a: samples, positions and units
    activation_mean          = mean of the outputs of all modules

In the unit of the outputs, to be read beside ``activation_std``. About zero behind a linear layer, of the size of the standard
deviation behind a ReLU. Several times the standard deviation: the layer puts out much the same for every sample, the layers
behind it see a constant with a little signal on top, and training is ill-conditioned: centre the inputs, normalise before the
layer. Drifting away over time: biases follow the output's constant part.

Source: LeCun, Bottou, Orr, Mueller, Efficient BackProp, 1998, section 4.3.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATIONS, Instrument, Readings, layerwise
from cockpit_lite.step import Step


def pooled_mean(means: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the mean of all outputs from that of each module."""
    total = sum(counts)
    return (means * means.new_tensor([count / total for count in counts])).sum()


class ActivationMean(Instrument):
    """Writes ``activation_mean`` and ``activation_mean/<module>``, in the unit of the outputs."""

    name = "activation_mean"
    needs = (ACTIVATIONS,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        activations = step.activations
        if not activations.modules:
            raise NotMeasured("no layer of the model was called on this step")
        by_module = dict(zip(activations.modules, activations.means.unbind(), strict=True))
        whole = pooled_mean(activations.means, activations.counts)
        return {"activation_mean": whole, **layerwise("activation_mean", by_module)}
