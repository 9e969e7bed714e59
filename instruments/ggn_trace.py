"""Trace of the Gauss-Newton matrix: the curvature of the loss as if the model were linear around its weights.

    ggn_trace = trace J'L''J = sum_n E ||J_n'u_n||^2

J the Jacobian of the model's outputs, L'' the second derivative of the loss by them. u_n = R_n e_n with random signs e_n and
R_n R_n' = L_n'' (cross entropy: a Cholesky factor of diag(p) - pp'), which spreads less than the gradients of labels that are
drawn from the model's own predictive distribution, and means the same. A backward pass as far as the modules' outputs gives all
samples' J_n'u_n to the rules for per-sample gradients, whose squared norms are the estimate: unbiased, for less than a training
step, and within some per cent on a usual batch; where few samples carry the trace, late in training of a recurrent network,
within some tenths. What the numbers of a sample's predictions (tokens, pixels) add up to by chance is taken out where there are
several; where it has one, the signs are taken along directions in which the last layer does not mix them, which late in
training leaves a third to two thirds of the error. The standard error is from the spread over the samples, which also differ by
themselves: it is too large, up to three times.

For these losses it is also the trace of the Fisher information matrix, and never negative. It equals the trace of the Hessian
where the model is piecewise linear in all weights together (one layer under any of these losses), and for ReLU networks too, in
trace: what the Hessian has beside it are products between different layers, off the diagonal. With tanh, sigmoid, attention or
normalisation the two differ by what bends in the model, most at the start of training.

A bad value: compare it with its own past, as the Hessian's. Growth by orders of magnitude: ever sharper surroundings, a
shrinking range of learning rates that work. Near zero while the loss is high: the outputs are saturated (confidently wrong), or
the gradient does not reach the weights.

References: J. Martens, New Insights and Perspectives on the Natural Gradient Method, 2020; F. Kunstner, L. Balles, P. Hennig,
Limitations of the Empirical Fisher Approximation, 2019.
"""

from __future__ import annotations

from cockpit_lite.instrument import CURVATURE, SAMPLED_CURVATURE, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.diagonal import SAMPLED
from cockpit_lite.step import Step


class GaussNewtonTrace(Instrument):
    """Writes ``ggn_trace`` and ``ggn_trace/<parameter>``, of the Gauss-Newton matrix and its diagonal blocks."""

    name = "ggn_trace"
    needs = (CURVATURE, SAMPLED_CURVATURE)
    preset = "full"

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        whole = curvature.gauss_newton_trace()
        by_parameter = {}
        for name in curvature.parameters:
            block = curvature.restricted([name]).gauss_newton_trace()
            by_parameter[name] = Reading(block.value, "gauss-newton", standard_error=block.standard_error, note=SAMPLED)
        return {
            "ggn_trace": Reading(whole.value, "gauss-newton", standard_error=whole.standard_error, note=SAMPLED),
            **layerwise("ggn_trace", by_parameter),
        }
