"""Trace of the Hessian: the mean curvature over all directions, times their number.

Formula: ``trace H = sum_j d²L/dtheta_j²``, estimated by Hutchinson's ``E[v'Hv]`` over random sign vectors v; the standard
error says how far off it may be. What a search for eigenvalues has found on the same step is taken out of the estimate and
added exactly. With no more parameters than samples it is computed exactly.

The random vector is what the error is made of, far more than the batch: so what is not known from the search is taken of a
quarter of the batch, at a quarter of the price, and the note says of how many samples. The standard error holds both. Where
samples meet (batch normalisation) the whole batch is taken.

A bad value: compare it with its own past. A trace that grows by orders of magnitude goes with ever sharper surroundings
and a shrinking range of learning rates that work; a trace near zero with a loss that is still high is a plateau. A negative
one means that the loss bends down in most directions, as happens at the very start.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

References: M. Hutchinson (1989); Z. Yao et al., "PyHessian" (2020); F. Dangel et al., "Cockpit" (NeurIPS 2021).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cockpit_lite.curvature.sub_batch import SHARE, check
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings

if TYPE_CHECKING:
    from cockpit_lite.step import Step


class HessianTrace(Instrument):
    """Trace of the Hessian of the mini-batch loss, estimated with ``samples`` Hessian-vector products.

    Args:
        samples: Products to spend on each measurement; the relative error falls with their square root.
        sub_batch: Take them of so many samples of the batch, or of a share of it below 1; None: of all.
    """

    name = "hessian_trace"
    needs = (CURVATURE,)
    preset = "full"

    def __init__(self, samples: int = 1, sub_batch: float | None = SHARE):
        if samples < 1:
            raise SetupError(f"HessianTrace(samples={samples}): at least 1 is needed.")
        check("HessianTrace", sub_batch)
        self.samples = samples
        self.sub_batch = sub_batch

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        estimate = curvature.trace(self.samples, self.sub_batch)
        if estimate.standard_error is None:
            return {self.name: Reading(estimate.value, note=curvature.note)}
        _, note = curvature.sub_batch_or_all(self.sub_batch)
        return {self.name: Reading(estimate.value, "estimated", standard_error=estimate.standard_error, note=note)}

    def __repr__(self) -> str:
        return f"HessianTrace(samples={self.samples}, sub_batch={self.sub_batch})"
