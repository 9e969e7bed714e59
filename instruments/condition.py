"""Condition of the Hessian: how far the sharpest direction is from the typical one.

    condition          = max_eigenvalue / median of |lambda| over the rest of the spectrum
    outliers_over_bulk = max_eigenvalue / root mean square of lambda over the rest of the spectrum

*The rest* is everything but the largest eigenvalue for ``condition``, and everything but what the search for the largest ones has
found for ``outliers_over_bulk``. The textbook quotient of largest and smallest eigenvalue has no meaning here: the smallest is
negative, and those nearest to zero are rounding.

Which estimate: the largest eigenvalue is that of ``max_eigenvalue``; the median is of the few nodes of ``spectral_density``, in
which nearly all weight sits on one or two nodes near zero, so read it as an order of magnitude; the root mean square is from the
same random products as the trace, with what the search has found taken out. Both, but not the largest eigenvalue, are of a
quarter of the batch, whose bulk is somewhat wider; where samples meet (batch normalisation) of the whole.

Gradient descent needs about ``condition`` steps to move along a typical direction while it stays stable along the sharpest. From
10^2 to 10^5 is common for networks; momentum makes a root of it, an adaptive optimizer or normalisation layers lower what counts.
A condition that grows while the gradient stays and the loss does not fall is ill-conditioning: normalise inputs and activations,
warm up, or precondition. ``outliers_over_bulk`` of a trained classifier is far above 10: few directions, about as many as
classes, carry the curvature.

Source: L. Sagun et al., Empirical Analysis of the Hessian of Over-Parametrized Neural Networks, 2017; I. Goodfellow, Y. Bengio,
A. Courville, Deep Learning, 2016, section 8.2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.curvature.sub_batch import SHARE
from cockpit_lite.curvature.trace import Remainder
from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings
from cockpit_lite.probes import density
from cockpit_lite.step import Step


def median_of_the_rest(nodes: Tensor, weights: Tensor, dimension: int) -> Tensor:
    """Return the weighted median of the magnitudes of a spectrum without its largest eigenvalue, a scalar tensor.

    Args:
        nodes: Eigenvalues, in rising order.
        weights: The share of the spectrum that each stands for; they add up to one.
        dimension: Number of eigenvalues in all: one of so many is left out.
    """
    weights = weights.clone()
    remaining = torch.as_tensor(1.0 / dimension, dtype=weights.dtype)
    for index in range(len(weights) - 1, -1, -1):  # the largest may be spread over several nodes
        taken = torch.minimum(weights[index], remaining)
        weights[index] -= taken
        remaining = remaining - taken
    sizes, order = nodes.abs().sort()
    shares = weights[order].cumsum(0)
    # Half of the weight, but for rounding: the first node at which so much has been passed.
    return sizes[(shares >= 0.5 * shares[-1] * (1 - 1e-12)).to(torch.int8).argmax()]


def rms_of_the_rest(random: Remainder, count: int) -> Tensor:
    """Return the root mean square of the ``count`` eigenvalues outside of a subspace, from random products with the matrix."""
    # E ||P H P z||^2 is the sum of the squared eigenvalues of PHP, P = 1 - VV'.
    return (random.squares.mean() / count).sqrt()


class Condition(Instrument):
    """Writes ``condition`` and ``outliers_over_bulk``, without unit.

    Args:
        tolerance: Of the largest eigenvalue.
        max_products: To spend on the search for it, shared with others who ask, at least 2.
    """

    name = "condition"
    needs = (CURVATURE,)
    readings = ("condition", "outliers_over_bulk")
    preset = "full"

    def __init__(self, tolerance: float = 1e-2, max_products: int = 12):
        if not tolerance > 0:
            raise SetupError(f"Condition(tolerance={tolerance}): must be above 0.")
        if max_products < 2:
            raise SetupError(f"Condition(max_products={max_products}): at least 2 are needed.")
        self.tolerance = tolerance
        self.max_products = max_products

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        if curvature.dimension < 2:
            raise NotMeasured("the model has one weight, and a condition compares two directions")
        largest = curvature.top_eigenpairs(tolerance=self.tolerance, max_products=self.max_products).values[0]
        if largest <= 0:
            raise NotMeasured("the loss bends up nowhere")
        found = step.once(density.spectral_density)
        median = median_of_the_rest(found.nodes, found.weights, curvature.dimension)
        _, known = curvature.sub_batch_or_all(SHARE)
        notes = [known, "median magnitude of the density's nodes"]
        readings = {"condition": Reading(largest / median, "estimated", note="; ".join(filter(None, notes)))}
        unknown = curvature.dimension - len(curvature.krylov.basis)
        if unknown:
            rms = rms_of_the_rest(curvature.random_remainder(1, SHARE), unknown)
            readings["outliers_over_bulk"] = Reading(largest / rms, "estimated", note=known)
        return readings

    def __repr__(self) -> str:
        return f"Condition(tolerance={self.tolerance}, max_products={self.max_products})"
