"""Second moment ratio: whether Adam's running mean of squares still describes the gradient.

    second_moment_ratio = sqrt( mean over elements of G_j^2 / v_j ),   v the bias-corrected second moment before the step

Of large parameters some ten thousand elements, evenly spread, are looked at.

About 1 where v is right. Well above it the gradient has grown faster than v follows (beta2 too close to 1): the step is longer
than meant, and a loss spike may come some steps later. The first twenty steps say little.

Source: Wortsman and others, Stable and low-precision training for large-scale vision-language models, 2023, section 3 (RMS of the
update).
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, Instrument, Readings
from cockpit_lite.step import Step

#: Elements of a parameter that are looked at.
MOST_ELEMENTS = 10_000


def mean_square_ratio(gradient: Tensor, second_moment: Tensor) -> Tensor:
    """Return the sum over the elements of ``G^2 / v``; elements that have never had a gradient count as 0."""
    squares = gradient.square()
    return torch.where(second_moment > 0, squares / second_moment, torch.zeros_like(squares)).sum()


def evenly(tensor: Tensor) -> Tensor:
    """Return at most ``MOST_ELEMENTS`` elements, evenly spread."""
    return tensor.reshape(-1)[:: -(-tensor.numel() // MOST_ELEMENTS) or 1]


def _count(steps: float | Tensor) -> float | Tensor:
    """Return the steps so far: a number where the device need not be asked."""
    return float(steps) if not isinstance(steps, Tensor) or steps.is_cpu else steps


class SecondMomentRatio(Instrument):
    """Writes ``second_moment_ratio``, without unit."""

    name = "second_moment_ratio"
    needs = (GRADIENT,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        names = {id(parameter): name for name, parameter in step.parameters.items()}
        sums: list[Tensor] = []
        count = 0
        for optimizer in step.optimizers:
            for group in optimizer.param_groups:
                if "betas" not in group:
                    continue
                for parameter in group["params"]:
                    state, name = optimizer.state.get(parameter, {}), names.get(id(parameter), "")
                    gradient = step.applied_gradient.get(name)
                    if gradient is None or "exp_avg_sq" not in state or "step" not in state:
                        continue
                    gradient, moment = evenly(gradient), evenly(state["exp_avg_sq"])
                    correction = 1 - group["betas"][1] ** _count(state["step"])
                    sums.append(mean_square_ratio(gradient, moment / correction))
                    count += gradient.numel()
        if not sums:
            raise NotMeasured("no optimizer keeps a second moment of the gradient yet")
        return {"second_moment_ratio": (torch.stack([value.to(sums[0]) for value in sums]).sum() / count).sqrt()}
