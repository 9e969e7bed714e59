"""Orthogonality test: how much of the samples' gradients stands at right angles to the mini-batch gradient?

    orthogonality_test = sqrt( 1/(N(N-1)) sum_n || g_n - (g_n'G / ||G||^2) G ||^2 ) / ||G||

The part of the gradient noise that the inner-product test does not see. Large while that one is small: the length of
a step is right but its direction wanders.

Source: Bollapragada, Byrd, Nocedal, Adaptive sampling strategies for stochastic optimization, 2017, (3.3).
"""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS, Instrument, Readings
from cockpit_lite.probes.noise import contributions_products, contributions_squared_norms, gradient_squared_norm, reading
from cockpit_lite.step import Step


def orthogonality_test(squared_norms: Tensor, products: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return the orthogonality test from ``||c_n||^2`` (N,), ``c_n'G`` (N,) and ``||G||^2``."""
    count = products.numel()
    # ||g_n||^2 minus the square of its component along G; rounding can push a parallel sample below zero.
    orthogonal = (squared_norms - products.square() / squared_gradient_norm).clamp(min=0).sum() * count**2
    return (orthogonal / (count * (count - 1)) / squared_gradient_norm).sqrt()


class OrthogonalityTest(Instrument):
    """Writes ``orthogonality_test``, without unit."""

    name = "orthogonality_test"
    needs = (GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        statistics = step.per_sample
        value = orthogonality_test(
            contributions_squared_norms(statistics), contributions_products(statistics), gradient_squared_norm(step)
        )
        return {"orthogonality_test": reading(statistics, value)}
