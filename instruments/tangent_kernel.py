"""Drift of the tangent kernel: does the network learn features, or does it only turn the knobs of those it was born with?

    K_t = J_t J_t',  J_t the derivatives of the outputs on a fixed probe batch by the parameters
    tangent_kernel        = 1 - <K_0, K_t> / (‖K_0‖ ‖K_t‖)
    tangent_kernel_growth = trace K_t / trace K_0

The probe batch is the first one that was measured, up to 16 samples of it; K_0 is the kernel there and then. The outputs of a
sample are projected on random directions r of signs, the same for all samples and at all steps, and the kernels of ``r'y`` are
averaged: in the mean over the directions that is the kernel summed over the outputs.

The drift lies between 0 and 1. Near 0: the lazy regime, in which the network behaves like its linearisation at the start and
training is kernel regression; it goes with very wide layers, large outputs or initial weights, and tiny learning rates. Networks
that do well usually drift by some tenths in the first epochs, and slowly from then on. Neither is a fault by itself: a drift
near 0 after many epochs means that no features are learned (of a pretrained network: that it is hardly touched), one that goes
on at the same pace that training has not settled, a jump that one step has thrown the network into another region. A kernel
that shrinks to 0 (dead units) has drift 1; one that grows many times over goes with sharpness.

The model is called once more, without a trace, in the mode it is in, with the same random numbers for dropout each time; with
batch normalisation in train mode the kernel is conditional on the statistics of the probe batch.

Source: S. Fort et al., "Deep learning versus kernel learning" (NeurIPS 2020); L. Chizat, E. Oyallon, F. Bach, "On lazy training
in differentiable programming" (NeurIPS 2019).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instrument import PROBE_BATCH, Instrument, Reading, Readings
from cockpit_lite.probes.probe_batch import TangentKernel
from cockpit_lite.step import Step


def kernel_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 - cosine of the angle between two kernels; 1 if one of them is zero."""
    one, other = (
        kernel / torch.linalg.matrix_norm(kernel).clamp_min(torch.finfo(kernel.dtype).tiny) for kernel in (first, second)
    )
    # Rounding can push the cosine beyond one.
    return (1 - (one * other).sum()).clamp(min=0)


class TangentKernelDrift(Instrument):
    """Writes ``tangent_kernel``, the drift, and ``tangent_kernel_growth``.

    Args:
        projections: On how many random directions the outputs are projected; each takes a backward pass over 16 samples.
    """

    name = "tangent_kernel"
    needs = (PROBE_BATCH,)
    readings = ("tangent_kernel", "tangent_kernel_growth")
    preset = "full"

    def __init__(self, projections: int = 2):
        if projections < 1:
            raise SetupError(f"TangentKernelDrift(projections={projections}): at least 1 is needed.")
        self.projections = projections
        self._first: TangentKernel | None = None
        self._since = 0

    def measure(self, step: Step) -> Readings:
        now = step.probe_batch.tangent_kernel(self.projections)
        if self._first is None:
            self._first, self._since = now, step.index
        first = self._first
        if first.parameters != now.parameters:
            raise NotMeasured("other parameters are covered by per-sample gradients than at the first measurement")
        samples = len(now.gram)
        note = f"on {samples} samples since step {self._since}, outputs projected on {self.projections} directions"
        kind = "conditional" if now.conditional else "estimated"
        growth = now.gram.trace() / first.gram.trace()
        return {
            "tangent_kernel": Reading(kernel_distance(first.gram, now.gram), kind, note=note),
            "tangent_kernel_growth": Reading(growth, kind),
        }

    def __repr__(self) -> str:
        return f"TangentKernelDrift(projections={self.projections})"
