"""Diagonal of the Gauss-Newton matrix: how sharp the loss is in the single weights.

    ggn_diagonal             = quantiles (0, 10, 25, 50, 75, 90, 100 %) over the weights of h_j = (J'L''J)_jj, an array of seven
    ggn_diagonal/<parameter> = mean of h_j over the parameter's elements

h_j = sum_n E (J_n'u_n)_j^2 with labels drawn from the model's own predictive distribution, see ``ggn_trace``: estimated without
bias from the same draw, so it costs next to nothing beside it. Each h_j is a sum over the samples of the batch and good to about
sqrt(2/N) of itself where all samples take part; the means over a parameter are much better. The two outermost quantiles are of
estimates, so they reach a little further than the true ones.

Exactly zero: the weight has no influence on the outputs in this batch (dead unit, row not looked up). Weights whose h_j are many
orders of magnitude apart need learning rates of their own: an adaptive optimizer, whose second moments follow h_j, or
normalisation. A mean that is far above the others names the layer that limits the learning rate of plain gradient descent.

References: F. Dangel, F. Kunstner, P. Hennig, BackPACK (DiagGGNMC), 2020; S. Becker, Y. LeCun, Improving the Convergence of
Back-Propagation Learning with Second Order Methods, 1988.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from cockpit_lite.instrument import CURVATURE, SAMPLED_CURVATURE, Instrument, Reading, Readings, layerwise
from cockpit_lite.step import Step

#: The shares of the elements below each value.
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
#: Of more elements than this an even selection is sorted; the ends are those of all.
MOST_SORTED = 100_000


def quantiles(tensors: Iterable[Tensor]) -> Tensor:
    """Return the quantiles :data:`QUANTILES` of all elements together, shape (7,)."""
    flat = [tensor.reshape(-1) for tensor in tensors if tensor.numel()]
    device = flat[0].device
    stride = max(1, sum(tensor.numel() for tensor in flat) // MOST_SORTED)
    chosen = torch.cat([tensor[::stride].to(device, torch.float32) for tensor in flat])
    found = torch.quantile(chosen, torch.tensor(QUANTILES, device=device))
    found[0] = torch.stack([tensor.min().to(device, torch.float32) for tensor in flat]).min()
    found[-1] = torch.stack([tensor.max().to(device, torch.float32) for tensor in flat]).max()
    return found


class GaussNewtonDiagonal(Instrument):
    """Writes ``ggn_diagonal``, seven quantiles, and ``ggn_diagonal/<parameter>``, means."""

    name = "ggn_diagonal"
    needs = (CURVATURE, SAMPLED_CURVATURE)
    preset = "full"

    def measure(self, step: Step) -> Readings:
        diagonal = step.curvature.gauss_newton_diagonal()
        note = "from sampled labels"
        means = {name: Reading(values.mean(), "gauss-newton", note=note) for name, values in diagonal.items() if values.numel()}
        whole = Reading(quantiles(diagonal.values()), "gauss-newton", note=note)
        return {"ggn_diagonal": whole, **layerwise("ggn_diagonal", means)}
