"""Evidence-based early stopping: is there still a signal in the gradient, or is it what sampling noise alone would give?

    early_stopping = 1 - N/D sum_j G_j^2 / (s_j + 1e-5),   s_j = 1/(N-1) sum_n (g_nj - G_j)^2

If the gradient of the whole training distribution were zero, N G_j^2 / s_j would be about 1, and the criterion about 0. Below
zero: there is a signal, go on. Above zero, at several steps in a row: the gradients are smaller than their noise explains, and
what is learnt from now on is the training sample: stop. It needs no validation set. The constant in
the denominator pushes the criterion towards 1 where the gradients are small, of the order of 1e-3 and less.

Source: Mahsereci, Balles, Lassner, Hennig, Early stopping without a validation set, 2017, (7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES, Instrument, Readings
from cockpit_lite.probes.noise import elements, reading
from cockpit_lite.step import Step

#: Of the source's own code; it keeps elements without variance from counting as infinite.
DAMPING = 1e-5


def evidence(squared_gradient: Tensor, variance: Tensor, count: int) -> Tensor:
    """Return the sum over the elements of ``N G_j^2 / (s_j + 1e-5)``, a scalar tensor.

    Args:
        squared_gradient: ``G_j^2``.
        variance: ``1/N sum (g_nj - G_j)^2``.
        count: Number of samples N.
    """
    share = (count - 1) / count  # s_j = variance / share; few passes over the elements, since they are many
    return (squared_gradient / (variance + DAMPING * share)).sum() * (count - 1)


class EarlyStopping(Instrument):
    """Writes ``early_stopping``, without unit."""

    name = "early_stopping"
    needs = (GRADIENT, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        sums: list[Tensor] = []
        size = 0
        for _, squared_gradient, variance in elements(step):
            sums.append(evidence(squared_gradient, variance, step.per_sample.batch_size))
            size += variance.numel()
        if not size:
            raise NotMeasured("no parameter has elements")
        total = torch.stack([value.to(sums[0].device) for value in sums]).sum()
        return {"early_stopping": reading(step.per_sample, 1 - total / size)}
