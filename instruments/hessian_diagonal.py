"""Diagonal of the Hessian: how sharp the loss is in the single weights.

    hessian_diagonal             = quantiles (0, 10, 25, 50, 75, 90, 100 %) over the weights of h_j = d^2 L / d theta_j^2
    hessian_diagonal/<parameter> = mean of h_j over the parameter's elements
    negative_curvature           = share of the weights with h_j < 0

By BackPACK's DiagHessian on a copy of the model, where it knows every module: chains of linear and convolutional layers, common
activations and poolings with nothing between the modules, cross entropy or squared error at the end. It is that of a quarter of
the batch, as it costs about five forward and backward passes of the samples it is of; ``sub_batch=None`` takes all and is exact.

In a chain of linear layers and piecewise linear activations (ReLU) the output is piecewise linear in each layer's weights: the
diagonal equals that of the Gauss-Newton matrix, and none of it is negative; the kinks are invisible. There the sampled diagonal
of the Gauss-Newton matrix, which is of the whole batch, serves both (see ``ggn_diagonal``): after training it is nearer to the
truth than the exact one of a quarter of the batch, at a fraction of the price. ``sub_batch=None`` is exact there, too.

Elsewhere the sampled diagonal of the Gauss-Newton matrix stands in for that of the Hessian, and the reading says so: of the
Hessian itself random vectors give a diagonal that is off by many times its value, which is worse than none.

With tanh, sigmoid and the like, negative elements are what bends down in the model itself; their share falls as training nears a
minimum.

Weights whose h_j are many orders of magnitude apart need learning rates of their own: an adaptive optimizer, or normalisation.

References: F. Dangel, F. Kunstner, P. Hennig, BackPACK: Packing more into Backprop, 2020; S. Becker, Y. LeCun, Improving the
Convergence of Back-Propagation Learning with Second Order Methods, 1988.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cockpit_lite.curvature.sub_batch import SHARE, check, choose
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import (
    CURVATURE,
    REPLAY,
    SAMPLED_CURVATURE,
    SAMPLED_DIAGONAL,
    Instrument,
    Reading,
    Readings,
    layerwise,
)
from cockpit_lite.probes.diagonal import SAMPLED, gauss_newton_diagonal, summarised
from cockpit_lite.probes.hessian_diagonal import hessian_diagonal, is_piecewise_linear
from cockpit_lite.step import Step

#: Why there need not be two diagonals.
_THE_SAME = "that of the Gauss-Newton matrix, which it equals in a chain of piecewise linear layers"


def negative_share(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the share of all elements that are below zero, a scalar tensor."""
    device = next(iter(tensors.values())).device
    negative = torch.stack([(tensor < 0).sum().to(device) for tensor in tensors.values()]).sum()
    return negative / sum(tensor.numel() for tensor in tensors.values())


class HessianDiagonal(Instrument):
    """Writes ``hessian_diagonal``, seven quantiles, ``hessian_diagonal/<parameter>``, means, and ``negative_curvature``.

    Args:
        sub_batch: Take it of so many samples of the batch, or of a share of it below 1; None: of all, which is exact. Without
            effect in a chain of piecewise linear layers, see above.
    """

    name = "hessian_diagonal"
    needs = (CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL, REPLAY)
    readings = ("hessian_diagonal", "negative_curvature")
    preset = "full"

    def __init__(self, sub_batch: float | None = SHARE) -> None:
        check("HessianDiagonal", sub_batch)
        self.sub_batch = sub_batch
        self._readings: dict[str, Tensor | Reading | NotMeasured] | None = None

    def prepare(self, step: Step) -> None:
        self._readings = None
        note: str | None
        try:
            if self.sub_batch is not None and is_piecewise_linear(step.replay.model):
                found, kind, note = step.once(gauss_newton_diagonal), "estimated", f"{_THE_SAME}, {SAMPLED}"
                negative: Reading | NotMeasured = Reading(0.0, note=_THE_SAME)
            else:
                diagonal, kind, note = self._hessian(step)
                found, negative = summarised(diagonal), Reading(negative_share(diagonal), kind, note=note)
        except NotMeasured as reason:
            found, kind, note = step.once(gauss_newton_diagonal), "gauss-newton", f"{SAMPLED}: {reason}"
            negative = NotMeasured(f"the diagonal is of the Gauss-Newton matrix, {note}")
        means = {name: Reading(value, kind, note=note) for name, value in found.means.items()}
        self._readings = {
            "hessian_diagonal": Reading(found.quantiles, kind, note=note),
            "negative_curvature": negative,
            **layerwise("hessian_diagonal", means),
        }

    def _hessian(self, step: Step) -> tuple[dict[str, Tensor], str, str | None]:
        replay, samples = step.replay, []
        if self.sub_batch is not None:
            samples = choose(replay.call.inputs(), self.sub_batch, step.curvature.generator)
        found = hessian_diagonal(replay, samples)
        if not samples or samples[0].axis:
            return found, "exact", None
        return found, "sub-batch", f"sub-batch of {samples[0].size} of {samples[0].batch_size} samples"

    def measure(self, step: Step) -> Readings:
        readings, self._readings = self._readings, None
        if readings is None:
            raise NotMeasured("the curvature was not seen on this step")
        return readings

    def __repr__(self) -> str:
        return f"HessianDiagonal(sub_batch={self.sub_batch})"
