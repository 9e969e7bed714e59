"""Curvature noise: how far to trust the curvature of one mini-batch.

    curvature_noise = sqrt( 1/(N (N-1)) sum_n (q_n - q)^2 ) / |q|
    q_n = (J_n d)' L_n'' (J_n d),   q = 1/N sum_n q_n = d'Gd

N samples; d the step that was really taken, J_n d how far it moves the model's output for sample n, L_n'' the second derivative
of that sample's loss, both at the weights before the step. It is the relative standard error of the mini-batch's Gauss-Newton
curvature along the step, as the norm test is that of its gradient.

Below 0.1 to 0.3 the curvature of one mini-batch speaks for the data, and so do the readings made of it (largest eigenvalue,
stability limit, trust ratio). Near or above 1 it is that of a few samples: average over steps or measure with a larger batch
before drawing conclusions.

The Gauss-Newton matrix, J'L''J, is the Hessian of the loss as if the model were linear around its weights. The two are equal
where each output is piecewise linear in all weights together (one layer, or all but one frozen); under ReLU they differ by the
products between layers. In train mode batch normalisation couples the samples; J_n d is then conditional on the batch statistics.

Source: the spread of per-sample curvature along a direction, as in F. Dangel, L. Tatzel, P. Hennig, ViViT, 2022.
"""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, REPLAY, SAMPLE_LOSSES, UPDATE, Instrument, Reading, Readings
from cockpit_lite.probes.replay import expansion_along_update
from cockpit_lite.step import Step


def curvature_noise(contributions: Tensor) -> Tensor:
    """Return the relative standard error of the mini-batch curvature from the samples' contributions to it, shape (N,)."""
    count = contributions.numel()
    # sum_n (N c_n - q)^2 / (N (N-1)) with q = sum c_n is N times the sample variance of the contributions.
    return (count * contributions.var()).sqrt() / contributions.sum().abs()


class CurvatureNoise(Instrument):
    """Writes ``curvature_noise``, without unit."""

    name = "curvature_noise"
    needs = (REPLAY, UPDATE, SAMPLE_LOSSES, GRADIENT)
    can_do_without = (GRADIENT,)
    preset = "full"

    def measure(self, step: Step) -> Readings:
        replay, micro_batches = step.replay, step.micro_batches
        if len(micro_batches) != 1:
            raise NotMeasured("the batch came in several parts")
        if micro_batches[0].batch_size < 2:
            raise NotMeasured("the batch holds one sample, and its variance needs two")
        expansion = step.once(expansion_along_update)
        contributions = replay.by_sample(expansion.gauss_newton, micro_batches[0])
        if not bool((contributions != 0).any()):
            raise NotMeasured("the loss is not curved along the step")
        return {self.name: Reading(curvature_noise(contributions), "gauss-newton", note=replay.note)}
