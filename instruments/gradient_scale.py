"""Gradient scale by depth: how large the gradient of each layer is beside its weights, and how that changes from layer to layer.

    gradient_scale/<weight> = ||G_l|| / ||theta_l||,  G_l the gradient of one weight matrix or kernel theta_l, before clipping
    gradient_scale          = the same over all of them together
    gradient_growth         = exp( - slope of log gradient_scale/<weight> over l ),  l = 0, 1, ... in the order of the network

The scale has no unit: times the learning rate it is the share by which a step of plain gradient descent changes the layer.
Beyond about 100 in all, the gradient is out of proportion to the weights, whatever the learning rate. The growth is the factor,
by least squares, from each layer to the one before it, the way that the gradient takes. About 1: all layers learn at one pace.
0.5 in ten layers: the first one gets a thousandth of what the last one gets, the gradient vanishes; 2: it explodes. Biases and
the scales of normalisation, which have a size of their own, are left out; layers that are zero do not count for the growth.

Source: Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, section 4; You, Gitman,
Ginsburg, Large batch training of convolutional networks, 2017, for the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.moments import stacked
from cockpit_lite.step import Step


def growth_per_layer(scales: Sequence[float]) -> float:
    """Return the factor by which the scale grows from each layer to the one before it; NaN with fewer than two usable layers.

    Args:
        scales: In the order of the network; layers that are zero or not finite are left out, the others keep their place.
    """
    places = [place for place, scale in enumerate(scales) if 0 < scale < math.inf]
    if len(places) < 2:
        return math.nan
    middle = sum(places) / len(places)
    slope = sum((place - middle) * math.log(scales[place]) for place in places)
    return math.exp(-slope / sum((place - middle) ** 2 for place in places))


class GradientScale(Instrument):
    """Writes ``gradient_scale``, ``gradient_scale/<parameter>`` and, from three layers on, ``gradient_growth``, without unit."""

    name = "gradient_scale"
    needs = (GRADIENT,)
    readings = ("gradient_scale", "gradient_growth")
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        gradients = {name: value for name, value in step.gradient.items() if value.dim() > 1}
        if not gradients:
            raise NotMeasured("no weight matrix has a gradient")
        of_gradients, of_weights = ([norms[name] for name in gradients] for norms in (step.gradient_norms, step.weight_norms))
        upper, lower = stacked(of_gradients), stacked(of_weights)
        scales = upper / lower
        whole = torch.linalg.vector_norm(upper) / torch.linalg.vector_norm(lower)
        growth = {"gradient_growth": Reading(scales, on_host=growth_per_layer)} if len(gradients) > 2 else {}
        return {
            "gradient_scale": whole,
            **growth,
            **layerwise("gradient_scale", dict(zip(gradients, scales.unbind(), strict=True))),
        }
