"""Gradient alignment: do the gradients of the samples point the same way?

    gradient_alignment = mean over pairs n != m of g_n'g_m  /  ( 1/N sum_n ||g_n||^2 )
                       = ( ||sum g_n||^2 - sum ||g_n||^2 ) / ( (N-1) sum ||g_n||^2 )

1: all samples have the same gradient; 0: in the mean they are orthogonal, a step for one sample does nothing for another, as late
in training or with a batch of noise; below zero, down to -1/(N-1): they undo each other. It is a cosine weighted by length: a
sample with a large gradient counts more.

Source: Fort, Nowak, Jastrzebski, Narayanan, Stiffness: a new perspective on generalization in neural networks, 2019;
Sankararaman, De, Xu, Huang, Goldstein, The impact of neural network overparameterization on gradient confusion, 2020.
"""

from __future__ import annotations

from torch import Tensor

from cockpit_lite.instrument import GRADIENT, PER_SAMPLE_NORMS, Instrument, Readings
from cockpit_lite.probes.noise import contributions_squared_norms, gradient_squared_norm, reading
from cockpit_lite.step import Step


def gradient_alignment(squared_norms: Tensor, squared_gradient_norm: Tensor) -> Tensor:
    """Return the alignment from the contributions' squared norms (N,) and ``||G||^2``."""
    return (squared_gradient_norm / squared_norms.sum() - 1) / (squared_norms.numel() - 1)


class GradientAlignment(Instrument):
    """Writes ``gradient_alignment``, between -1/(N-1) and 1."""

    name = "gradient_alignment"
    needs = (GRADIENT, PER_SAMPLE_NORMS)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        value = gradient_alignment(contributions_squared_norms(step.per_sample), gradient_squared_norm(step))
        return {"gradient_alignment": reading(step.per_sample, value)}
