"""CABS: the batch size that suits the learning rate, by the coupled adaptive batch size rule.

    cabs = e V' / loss,   V' = 1/N sum_n ||g_n - G||^2

in samples, e the learning rate (of the first parameter group). Per sample seen, the expected progress of a step of plain SGD is
greatest at this batch size. Far above the batch size in use: steps are mostly noise, a larger batch or a smaller learning rate
pays; far below: samples are wasted. It rises as the loss falls, so that a batch that was large enough becomes too small.

It means something for plain SGD only, and takes the loss to be positive with a minimum near zero; of a loss that is not positive
there is none.

Source: Balles, Romero, Hennig, Coupling adaptive batch sizes with learning rates, 2017, (22).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, LOSS, PER_SAMPLE_NORMS, Instrument, Reading, Readings
from cockpit_lite.probes.noise import contributions_squared_norms, gradient_squared_norm, gradient_variance
from cockpit_lite.step import Step


def cabs(squared_norms: Tensor, squared_gradient_norm: Tensor, learning_rate: float, loss: Tensor) -> Tensor:
    """Return the batch size from the contributions' squared norms (N,), ``||G||^2``, the learning rate and the loss."""
    count = squared_norms.numel()
    variance = gradient_variance(squared_norms, squared_gradient_norm) * (count - 1) / count
    return learning_rate * variance / loss


class Cabs(Instrument):
    """Writes ``cabs``, in samples."""

    name = "cabs"
    needs = (LOSS, GRADIENT, PER_SAMPLE_NORMS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        statistics = step.per_sample
        squared_norms = contributions_squared_norms(statistics)
        loss = step.loss.to(squared_norms)
        value = cabs(squared_norms, gradient_squared_norm(step), step.learning_rate, loss)
        kind = "conditional" if statistics.conditional else "exact"
        return {"cabs": Reading(torch.stack([value, loss]), kind=kind, on_host=_of_positive_loss)}


def _of_positive_loss(found: Sequence[float]) -> float:
    value, loss = found
    if loss <= 0:  # a loss that is NaN is to be seen
        raise NotMeasured("the loss is not positive")
    return value
