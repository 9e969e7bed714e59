"""Diagonal of the Gauss-Newton matrix: how sharp the loss is in the single weights.

    ggn_diagonal             = quantiles (0, 10, 25, 50, 75, 90, 100 %) over the weights of h_j = (J'L''J)_jj, an array of seven
    ggn_diagonal/<parameter> = mean of h_j over the parameter's elements

h_j = sum_n E (J_n'u_n)_j^2 with random u_n at the model's outputs of the covariance L_n'', see ``ggn_trace``: estimated without
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

from cockpit_lite.instrument import CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.diagonal import SAMPLED, gauss_newton_diagonal
from cockpit_lite.step import Step


class GaussNewtonDiagonal(Instrument):
    """Writes ``ggn_diagonal``, seven quantiles, and ``ggn_diagonal/<parameter>``, means."""

    name = "ggn_diagonal"
    needs = (CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL)
    preset = "full"

    def measure(self, step: Step) -> Readings:
        found = step.once(gauss_newton_diagonal)
        means = {name: Reading(value, "gauss-newton", note=SAMPLED) for name, value in found.means.items()}
        whole = Reading(found.quantiles, "gauss-newton", note=SAMPLED)
        return {"ggn_diagonal": whole, **layerwise("ggn_diagonal", means)}
