"""Curvature along the gradient, and what it does to a gradient step.

Formulas, with gradient g, Hessian H and the learning rate e of each parameter:

- ``curvature_along_gradient = g'Hg / ‖g‖²``;
- ``taylor_gradient_term = g'(e g)``, how much a plain gradient step lowers the loss to first order;
- ``taylor_curvature_term = ½ (e g)'H(e g)``, how much of it the curvature takes back.

With one learning rate these are ``e g'g`` and ``½ e² g'Hg``. Parameters in no optimizer do not move. For other optimizers
than plain gradient descent the terms describe the plain step with the same learning rate, not the one taken.

A bad value: once the curvature term is as large as the gradient term, the step gains nothing on its own mini-batch; this is
how ill-conditioning shows although the gradient is not small. Below it the step is still too long by the model of second
order wherever the curvature term exceeds half of the gradient term.

Under ReLU the curvature in the kinks is invisible: this is the Hessian of the smooth piece that the weights are in.

Reference: I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning" (2016), section 8.2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import CURVATURE, Instrument, Reading, Readings

if TYPE_CHECKING:
    from cockpit_lite.step import Step


@dataclass(frozen=True)
class GradientStep:
    """Second-order model of the plain gradient step; scalar tensors, named as the readings are."""

    curvature_along_gradient: Tensor
    taylor_gradient_term: Tensor
    taylor_curvature_term: Tensor


def gradient_step(curvature: Curvature, learning_rates: Mapping[str, float]) -> GradientStep:
    """Return the three quantities; one product where all learning rates agree, two otherwise.

    Args:
        curvature: Of the mini-batch loss.
        learning_rates: By parameter name; missing ones do not move.
    """
    rates = [learning_rates.get(name, 0.0) for name in curvature.parameters]
    gradient = curvature.flat_gradient()
    along = gradient @ curvature.gradient_product
    if len(set(rates)) == 1:
        rate = rates[0]
        gradient_term, curvature_term = rate * (gradient @ gradient), 0.5 * rate**2 * along
    else:
        pieces = curvature.unflatten(gradient)
        move = curvature.flatten([rate * piece for rate, piece in zip(rates, pieces, strict=True)])
        gradient_term, curvature_term = gradient @ move, 0.5 * (move @ curvature.product(move))
    return GradientStep(along / (gradient @ gradient), gradient_term, curvature_term)


class CurvatureAlongGradient(Instrument):
    """Curvature of the mini-batch loss along its gradient, and the two Taylor terms of the plain gradient step."""

    name = "curvature_along_gradient"
    needs = (CURVATURE,)
    readings = ("curvature_along_gradient", "taylor_gradient_term", "taylor_curvature_term")
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        if not bool(torch.any(curvature.flat_gradient() != 0)):
            raise NotMeasured("the gradient is zero, so it points nowhere")
        readings = vars(gradient_step(curvature, step.parameter_learning_rates))
        if not step.parameter_learning_rates:  # an optimizer without a learning rate takes no such step
            readings = {self.name: readings[self.name]}
        return {name: Reading(value, note=curvature.note) for name, value in readings.items()}
