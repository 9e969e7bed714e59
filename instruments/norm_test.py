"""Norm test: is the batch large enough for the gradient's direction and length to be trusted?

    norm_test = sqrt( V / N ) / ||G||,   V = 1/(N-1) sum_n ||g_n - G||^2

N samples with gradients g_n, G their mean. It is the relative standard error of the mini-batch gradient: below 1 the gradient
stands out of its noise; far above 1 a step is mostly noise, and a larger batch or a smaller learning rate helps.

Source: Byrd, Chin, Nocedal, Wu, Sample size selection in optimization methods for machine learning, 2012, (3.9).
"""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, Instrument, Readings
from cockpit_lite.probes.noise import contributions_squared_norms, gradient_squared_norm, gradient_variance, reading
from cockpit_lite.step import Step


def norm_test(squared_norms: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return the norm test from the contributions' squared norms (N,) and ``||G||^2``."""
    variance = gradient_variance(squared_norms, squared_gradient_norm)
    return (variance / squared_norms.numel() / squared_gradient_norm).sqrt()


class NormTest(Instrument):
    """Writes ``norm_test``, without unit."""

    name = "norm_test"
    needs = (GRADIENT, PER_SAMPLE_NORMS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        statistics = step.per_sample
        return {"norm_test": reading(statistics, norm_test(contributions_squared_norms(statistics), gradient_squared_norm(step)))}
