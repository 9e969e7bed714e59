"""Alpha: where on the parabola of the loss did the step land?

    alpha = slope_1 / |slope_0|   if slope_1 > slope_0,   else -1
    slope_0 = d'G(theta_t) on batch t,   slope_1 = d'G(theta_{t+1}) on batch t+1,   d = theta_{t+1} - theta_t

-1: no move, or no curvature to be seen (the loss is straight or concave along the step); 0: the minimum along the step; +1: as
high on the other side as it began; beyond: the step went up. d is the step that was really taken, with momentum, clipping and
adaptive learning rates in it. Between -1 and 0 in the median is usual and healthy; around or above 0 over many steps the
learning rate overshoots; close to -1 all the time, it could be larger. Look at many steps: one value is as noisy as its standard
error says.

The quadratic is the most likely one through the derivatives at both ends. The losses at the ends, which the source uses as well,
weigh in by the variance of the samples' losses, which a mini-batch loss does not show. It is large: next to the noise of two
independent batches the loss hardly moves in one step, and leaving it out changes alpha by a fraction of the standard error (below
a fifth for usual step sizes). The standard error comes from the variance of the samples' d'g_n at the end, which is taken to be
the same at the start; where samples cannot be told apart the value is the same and its error is not known.

It takes two measured steps in a row and is written at the second one.

Source: Schneider, Dangel, Hennig, Cockpit: a practical debugging tool for the training of deep neural networks, 2021, section 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, LAST_STEP, PER_SAMPLE_NORMS, Instrument, Reading, Readings
from cockpit_lite.probes.last_step import inner_product
from cockpit_lite.step import Step


def alpha(start: Tensor, end: Tensor) -> Tensor:
    """Return where a step landed, from the slopes at its start and at its end."""
    return torch.where(end <= start, -torch.ones_like(end), end / start.abs())


def slope_variance(contributions: Tensor) -> Tensor:
    """Return the variance of the slope ``d'G = sum d'c_n`` from the samples' contributions ``d'c_n`` (N,)."""
    return contributions.numel() * contributions.var(correction=1)


def standard_error(start: Tensor, end: Tensor, variance: Tensor) -> Tensor:
    """Return the standard error of ``end / |start|`` (delta method); both have the same variance and are independent."""
    return (variance * (1 + (end / start).square())).sqrt() / start.abs()


class Alpha(Instrument):
    """Writes ``alpha``, without unit."""

    name = "alpha"
    needs = (GRADIENT, LAST_STEP, PER_SAMPLE_NORMS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        last = step.last_step
        start, end = last.slope, inner_product(last.update, step.gradient)
        error = None
        try:
            contributions = step.per_sample_slopes
        except NotMeasured:
            pass  # some layer's samples cannot be told apart
        else:
            if contributions.numel() > 1:
                error = standard_error(start, end, slope_variance(contributions))
        return {"alpha": Reading(alpha(start, end), kind="estimated", standard_error=error)}
