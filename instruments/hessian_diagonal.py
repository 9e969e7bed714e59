"""Diagonal of the Hessian: how sharp the loss is in the single weights, exactly.

    hessian_diagonal             = quantiles (0, 10, 25, 50, 75, 90, 100 %) over the weights of h_j = d^2 L / d theta_j^2
    hessian_diagonal/<parameter> = mean of h_j over the parameter's elements
    negative_curvature           = share of the weights with h_j < 0

Exact, by BackPACK's DiagHessian on a copy of the model, where it knows every module: chains of linear and convolutional layers,
common activations and poolings with nothing between the modules, cross entropy or squared error at the end. Elsewhere there is no
number: random vectors with products of the Hessian give a diagonal that is off by many times its value, which is worse than none;
``ggn_diagonal`` is there for every model, and ``layerwise_curvature`` for the sums.

It costs about five forward and backward passes. For piecewise linear activations (ReLU) it equals the diagonal of the
Gauss-Newton matrix, and none of it is negative; the kinks are invisible. With tanh, sigmoid and the like, negative elements are
what bends down in the model itself; their share falls as training nears a minimum.

Weights whose h_j are many orders of magnitude apart need learning rates of their own: an adaptive optimizer, or normalisation.

References: F. Dangel, F. Kunstner, P. Hennig, BackPACK: Packing more into Backprop, 2020; S. Becker, Y. LeCun, Improving the
Convergence of Back-Propagation Learning with Second Order Methods, 1988.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import CURVATURE, REPLAY, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.hessian_diagonal import hessian_diagonal
from cockpit_lite.probes.quantiles import quantiles
from cockpit_lite.step import Step


def negative_share(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the share of all elements that are below zero, a scalar tensor."""
    device = next(iter(tensors.values())).device
    negative = torch.stack([(tensor < 0).sum().to(device) for tensor in tensors.values()]).sum()
    return negative / sum(tensor.numel() for tensor in tensors.values())


class HessianDiagonal(Instrument):
    """Writes ``hessian_diagonal``, seven quantiles, ``hessian_diagonal/<parameter>``, means, and ``negative_curvature``."""

    name = "hessian_diagonal"
    needs = (CURVATURE, REPLAY)
    readings = ("hessian_diagonal", "negative_curvature")
    preset = "full"

    def __init__(self) -> None:
        self._readings: dict[str, Tensor | Reading] | None = None

    def prepare(self, step: Step) -> None:
        diagonal = {name: values for name, values in hessian_diagonal(step.replay).items() if values.numel()}
        self._readings = {
            "hessian_diagonal": quantiles(diagonal.values()),
            "negative_curvature": negative_share(diagonal),
            **layerwise("hessian_diagonal", {name: values.mean() for name, values in diagonal.items()}),
        }

    def measure(self, step: Step) -> Readings:
        readings, self._readings = self._readings, None
        if readings is None:
            raise NotMeasured("the curvature was not seen on this step")
        return readings
