"""Gradient noise scale: the batch size at which noise and signal of the gradient are equal.

    gradient_noise_scale = V / ( ||G||^2 - V/N ),   V = 1/(N-1) sum_n ||g_n - G||^2

in samples. The denominator is the unbiased estimate of the squared norm of the true gradient. Both are averaged over
the measured steps
apart before they are divided, since one step's ratio is far too noisy; a denominator that is still not positive
means that the noise drowns
the gradient, and the reading is infinite. A batch far below the noise scale wastes steps, one far above it wastes samples.

The standard error is that of a ratio of means (delta method) over the steps averaged. Batch normalisation couples
the samples: the value is then conditional on the batch statistics.

Source: McCandlish, Kaplan, Amodei and others, An empirical model of large-batch training, 2018, appendix A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, Instrument, Reading, Readings
from cockpit_lite.probes.noise import contributions_squared_norms, gradient_squared_norm, gradient_variance
from cockpit_lite.step import Step


def noise_and_signal(squared_norms: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return numerator V and denominator ``||G||^2 - V/N`` of the gradient noise scale, shape (2,)."""
    variance = gradient_variance(squared_norms, squared_gradient_norm)
    return torch.stack([variance, squared_gradient_norm - variance / squared_norms.numel()])


def ratio_with_standard_error(mean: Tensor, second_moment: Tensor, effective_count: float) -> tuple[Tensor, Tensor]:
    """Return numerator over denominator and its standard error.

    Args:
        mean: Averages of numerator and denominator, shape (2,).
        second_moment: Average of their outer product, shape (2, 2).
        effective_count: How many independent values the averages are worth.
    """
    ratio = mean[0] / mean[1]
    gradient = torch.stack([1 / mean[1], -mean[0] / mean[1] ** 2])
    covariance = second_moment - torch.outer(mean, mean)
    variance = (gradient @ covariance @ gradient).clamp(min=0) / max(effective_count - 1, 1e-9)
    infinite = torch.full_like(ratio, torch.inf)
    drowned = mean[1] <= 0
    standard_error = variance.sqrt() if effective_count > 1 else infinite
    return torch.where(drowned, infinite, ratio), torch.where(drowned, infinite, standard_error)


class GradientNoiseScale(Instrument):
    """Writes ``gradient_noise_scale`` and ``batch_size``, both in samples.

    Args:
        window: How many measured steps the averages reach back, roughly.
    """

    name = "gradient_noise_scale"
    needs = (GRADIENT, PER_SAMPLE_NORMS)
    readings = ("gradient_noise_scale", "batch_size")
    preset = "standard"

    def __init__(self, window: int = 20):
        self._keep = 1 - 1 / window
        self._weight = 0.0
        self._squared_weights = 0.0
        self._mean: Tensor | None = None
        self._second_moment: Tensor | None = None

    def measure(self, step: Step) -> Readings:
        statistics = step.per_sample
        values = noise_and_signal(contributions_squared_norms(statistics), gradient_squared_norm(step)).double()
        outer = torch.outer(values, values)
        # Weighted averages that begin with the data, not with zero.
        self._weight = self._keep * self._weight + 1
        self._squared_weights = self._keep**2 * self._squared_weights + 1
        if self._mean is None or self._second_moment is None:
            self._mean, self._second_moment = values, outer
        else:
            self._mean = self._mean + (values - self._mean) / self._weight
            self._second_moment = self._second_moment + (outer - self._second_moment) / self._weight
        ratio, standard_error = ratio_with_standard_error(
            self._mean, self._second_moment, self._weight**2 / self._squared_weights
        )
        kind = "conditional" if statistics.conditional else "estimated"
        return {
            "gradient_noise_scale": Reading(ratio, kind=kind, standard_error=standard_error),
            "batch_size": float(statistics.batch_size),
        }
