"""Takeuchi information criterion by traces: what the training loss hides of the loss on new data.

    tic_trace = (1/N sum_n ||g_n||^2) / trace H

g_n the gradients of the N samples, H the Hessian of the mini-batch loss. Takeuchi's estimate of the gap between the loss on new
data and the training loss is tr(C H^-1) / (number of training samples), C the second moments of the samples' gradients; the
quotient of the traces is its cheap stand-in, in units of effective parameters.

Divided by the number of training samples it is about the generalisation gap near a minimum. Small: the gradients of single
samples are small where the loss is curved, the weights are held by the data. Growing during training: the model relies more and
more on single samples; the validation loss tends to part from the training loss. Far from a minimum, early in training, it says
nothing; compare runs and late phases of the same model.

Which H: the Gauss-Newton matrix by default, whose trace is never negative, is had from random signs for less than a product,
and equals the Hessian's in trace for ReLU networks; ``curvature="hessian"`` takes the Hessian's trace from random products,
which may be negative far from a minimum, and is then not used. The standard error is that of the trace, as a share of it.

Source: V. Thomas et al., On the Interplay between Noise and Curvature and its Effect on Optimization and Generalization, 2020.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from cockpit_lite.curvature import TraceEstimate
from cockpit_lite.curvature.sub_batch import SHARE
from cockpit_lite.errors import NotMeasured, SetupError
from cockpit_lite.instrument import CURVATURE, PER_SAMPLE_NORMS, SAMPLED_CURVATURE, Instrument, Reading, Readings
from cockpit_lite.probes.noise import contributions_squared_norms
from cockpit_lite.step import Step


def tic_trace(squared_norms: Tensor, trace: Tensor) -> Tensor:
    """Return the criterion from the squared norms of the samples' contributions, shape (N,), and the trace.

    The contributions c_n sum to the gradient, so g_n = N c_n and 1/N sum ||g_n||^2 = N sum ||c_n||^2.
    """
    return squared_norms.numel() * squared_norms.sum() / trace


class TakeuchiTrace(Instrument):
    """Writes ``tic_trace``.

    Args:
        curvature: "gauss-newton" or "hessian".
        samples: Random products for the trace of the Hessian, shared with those who ask for it.
    """

    name = "tic_trace"
    needs = (CURVATURE, SAMPLED_CURVATURE, PER_SAMPLE_NORMS)
    preset = "full"

    def __init__(self, curvature: Literal["gauss-newton", "hessian"] = "gauss-newton", samples: int = 1):
        if curvature not in ("gauss-newton", "hessian"):
            raise SetupError(f"TakeuchiTrace(curvature={curvature!r}): must be 'gauss-newton' or 'hessian'.")
        if samples < 1:
            raise SetupError(f"TakeuchiTrace(samples={samples}): at least 1 is needed.")
        self.curvature = curvature
        self.samples = samples
        self._trace: TraceEstimate | None = None

    def prepare(self, step: Step) -> None:
        hessian = self.curvature == "hessian"
        self._trace = step.curvature.trace(self.samples, SHARE) if hessian else step.curvature.gauss_newton_trace()

    def measure(self, step: Step) -> Readings:
        trace, self._trace = self._trace, None
        if trace is None:
            raise NotMeasured("the curvature was not seen on this step")
        statistics = step.per_sample
        value = tic_trace(contributions_squared_norms(statistics), trace.value)
        if not bool(trace.value > 0):
            raise NotMeasured("the trace is not positive, so the weights are near no minimum")
        error = None if trace.standard_error is None else value * trace.standard_error / trace.value
        kind = "estimated" if self.curvature == "hessian" else "gauss-newton"
        note = "conditional on the batch statistics of batch normalisation" if statistics.conditional else None
        return {self.name: Reading(value, kind, standard_error=error, note=note)}

    def __repr__(self) -> str:
        return f"TakeuchiTrace(curvature={self.curvature!r})"
