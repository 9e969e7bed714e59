"""Trace of the Hessian: the mean curvature over all directions, times their number.

Formula: ``trace H = sum_j d²L/dtheta_j²``, estimated by Hutchinson's ``E[v'Hv]`` over random sign vectors v; the standard
error says how far off it may be. What a search for eigenvalues has found on the same step is taken out of the estimate and
added exactly. With no more parameters than samples it is computed exactly.

A bad value: compare it with its own past. A trace that grows by orders of magnitude goes with ever sharper surroundings
and a shrinking range of learning rates that work; a trace near zero with a loss that is still high is a plateau. A negative
one means that the loss bends down in most directions, as happens at the very start.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

References: M. Hutchinson (1989); Z. Yao et al., "PyHessian" (2020); F. Dangel et al., "Cockpit" (NeurIPS 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings

if TYPE_CHECKING:
    from cockpit_lite.step import Step


class HessianTrace(Instrument):
    """Trace of the Hessian of the mini-batch loss, estimated with ``samples`` Hessian-vector products.

    Args:
        samples: Products to spend on each measurement; the relative error falls with their square root.
    """

    name = "hessian_trace"
    needs = (CURVATURE,)
    preset = "full"

    def __init__(self, samples: int = 1):
        if samples < 1:
            raise SetupError(f"HessianTrace(samples={samples}): at least 1 is needed.")
        self.samples = samples

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        estimate = curvature.trace(self.samples)
        kind = "exact" if estimate.standard_error is None else "estimated"
        return {self.name: Reading(estimate.value, kind, standard_error=estimate.standard_error, note=curvature.note)}

    def __repr__(self) -> str:
        return f"HessianTrace(samples={self.samples})"
