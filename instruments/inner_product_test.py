"""Inner-product test: do the samples agree on the direction of descent?

    inner_product_test = sqrt( 1/(N(N-1)) sum_n (g_n'G - ||G||^2)^2 ) / ||G||^2

The relative standard error of the gradient along its own direction: below 1 a step is a descent direction with high
probability, far above 1 the samples pull against each other.

Source: Bollapragada, Byrd, Nocedal, Adaptive sampling strategies for stochastic optimization, 2017, (2.6).
"""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS, Instrument, Readings
from cockpit_lite.probes.noise import contributions_products, gradient_squared_norm, reading
from cockpit_lite.step import Step


def inner_product_test(products: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return the inner-product test from the contributions' products ``c_n'G`` (N,) and ``||G||^2``."""
    count = products.numel()
    deviation = (count * products - squared_gradient_norm).square().sum()
    return (deviation / (count * (count - 1))).sqrt() / squared_gradient_norm


class InnerProductTest(Instrument):
    """Writes ``inner_product_test``, without unit."""

    name = "inner_product_test"
    needs = (GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_PRODUCTS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        statistics = step.per_sample
        value = inner_product_test(contributions_products(statistics), gradient_squared_norm(step))
        return {"inner_product_test": reading(statistics, value)}
