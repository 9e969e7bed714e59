"""Trust ratio: did the step do what the loss around the old weights promised, on its own batch?

With d = theta_{t+1} - theta_t, the step that was really taken (momentum, preconditioner, decay, clipping in it), gradient G and
Hessian H of the mini-batch loss L at theta_t:

    update_gradient_term  = -d'G                       what the slope promises, in units of the loss
    update_curvature_term = 1/2 d'Hd                   what the curvature takes back
    predicted_decrease    = -d'G - 1/2 d'Hd
    actual_decrease       = L(theta_t) - L(theta_{t+1})     same batch, same random numbers
    trust_ratio           = actual_decrease / predicted_decrease
    curvature_along_update = d'Hd / ||d||^2            in the unit of an eigenvalue of H

A trust ratio near 1: the quadratic model holds as far as the step goes. Trust-region methods shorten the step below 1/4 and may
lengthen it above 3/4. Negative with a predicted decrease: the step went up where the model says down, it is far too long. Where
the predicted decrease itself is negative the step goes up already by the model: its curvature term exceeds its gradient term
(beyond the edge of stability), or it does not point downhill on this batch at all (update_gradient_term below 0: noise, or much
momentum), and the ratio only says how well the model holds. Near a predicted decrease of 0 the ratio is of two small numbers and
large; look at the two decreases then.

With an adaptive optimizer curvature_along_update is the curvature along the preconditioned direction that it really takes.

All are exact. Under ReLU the curvature in the kinks is invisible to H; the actual decrease sees it.

Sources: A. Conn, N. Gould, P. Toint, Trust-Region Methods, 2000; J. Martens, R. Grosse, Optimizing Neural Networks with
Kronecker-factored Approximate Curvature, 2015, section 6.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, REPLAY, UPDATE, Instrument, Reading, Readings
from cockpit_lite.norms import total_norm
from cockpit_lite.probes.replay import expansion_along_update
from cockpit_lite.step import Step


@dataclass(frozen=True)
class StepQuality:
    """What a step promised and kept; scalar tensors, named as the readings are."""

    trust_ratio: Tensor
    actual_decrease: Tensor
    predicted_decrease: Tensor
    update_gradient_term: Tensor
    update_curvature_term: Tensor


def step_quality(slope: Tensor, curvature: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]) -> StepQuality:
    """Compare the expansion of the loss with what became of it.

    Args:
        slope: d'G.
        curvature: d'Hd.
        before: The terms of the loss at theta_t.
        after: The same terms at theta_{t+1}.
    """
    # Term by term: the sums are nearly equal, and rounding them first would leave nothing of a small difference.
    differences = [(old - new).sum(dtype=_precise(old)) for old, new in zip(before, after, strict=True)]
    actual = torch.stack(differences).sum()
    predicted = -slope - curvature / 2
    return StepQuality(actual / predicted, actual, predicted, -slope, curvature / 2)


class TrustRatio(Instrument):
    """Writes ``trust_ratio``, its two decreases, the two Taylor terms of the real step and the curvature along it."""

    name = "trust_ratio"
    needs = (REPLAY, UPDATE, GRADIENT)
    can_do_without = (GRADIENT,)
    readings = (
        "trust_ratio",
        "actual_decrease",
        "predicted_decrease",
        "update_gradient_term",
        "update_curvature_term",
        "curvature_along_update",
    )
    preset = "full"

    def measure(self, step: Step) -> Readings:
        size = total_norm(step.update_norms)
        if not bool(size != 0):
            raise NotMeasured("the step did not move the weights")
        replay, expansion = step.replay, step.once(expansion_along_update)
        after = replay.terms({name: parameter.detach() for name, parameter in step.parameters.items()})
        quality = step_quality(expansion.slope, expansion.curvature, expansion.terms, after)
        values = {**vars(quality), "curvature_along_update": expansion.curvature / size.square()}
        return {name: Reading(value, note=replay.note) for name, value in values.items()}


def _precise(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64
