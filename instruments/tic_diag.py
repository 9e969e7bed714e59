"""Takeuchi information criterion by diagonals: what the training loss hides of the loss on new data, weight by weight.

    tic_diag = sum_j (1/N sum_n g_nj^2) / (h_j + 1e-7)

g_n the gradients of the N samples, h_j the diagonal of the Gauss-Newton matrix of the mini-batch loss, from random signs (see
``ggn_diagonal``): of Takeuchi's tr(C H^-1) what the diagonals hold. Near a minimum of a model that fits its labels' distribution
both diagonals agree, and the sum is the number of weights that have an influence; above it, the samples pull harder than the
model's own uncertainty explains (noisy or wrong labels, too little capacity); below, the model is surer than its labels would
let it be, which is overfitting.

The constant in the denominator is of the source's code; weights with h_j far below it count hardly at all. As both diagonals are
of the same batch and h_j is an estimate, a weight that few samples reach adds much noise: look at the course over a run, and at
``tic_trace``, which is steadier. Divided by the number of training samples it is about the generalisation gap near a minimum.

Source: V. Thomas et al., On the Interplay between Noise and Curvature and its Effect on Optimization and Generalization, 2020.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import (
    CURVATURE,
    PER_SAMPLE_NORMS,
    PER_SAMPLE_SQUARES,
    SAMPLED_CURVATURE,
    SAMPLED_DIAGONAL,
    Instrument,
    Reading,
    Readings,
)
from cockpit_lite.probes.noise import contributions_squared_norms
from cockpit_lite.step import Step

#: Of the source; it keeps weights without curvature from counting as infinite.
DAMPING = 1e-7


def tic_diag(sum_of_squares: Tensor, diagonal: Tensor, batch_size: int) -> Tensor:
    """Return one parameter's part of the criterion, a scalar tensor.

    Args:
        sum_of_squares: Sum over the samples of their contributions squared, element by element: c_n = g_n / N.
        diagonal: h_j, of the same shape.
        batch_size: N.
    """
    return (batch_size * sum_of_squares / (diagonal + DAMPING)).sum()


class TakeuchiDiagonal(Instrument):
    """Writes ``tic_diag``."""

    name = "tic_diag"
    needs = (CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL, PER_SAMPLE_NORMS, PER_SAMPLE_SQUARES)
    preset = "full"

    def __init__(self) -> None:
        self._diagonal: Mapping[str, Tensor] | None = None

    def prepare(self, step: Step) -> None:
        self._diagonal = step.curvature.gauss_newton_diagonal()

    def measure(self, step: Step) -> Readings:
        diagonal, self._diagonal = self._diagonal, None
        if diagonal is None:
            raise NotMeasured("the curvature was not seen on this step")
        statistics = step.per_sample
        contributions_squared_norms(statistics)  # raises where a parameter is not covered
        parts = [tic_diag(squares, diagonal[name], statistics.batch_size) for name, squares in statistics.sum_of_squares.items()]
        value = torch.stack([part.to(parts[0].device) for part in parts]).sum()
        note = "conditional on the batch statistics of batch normalisation" if statistics.conditional else None
        return {self.name: Reading(value, "gauss-newton", note=note)}
