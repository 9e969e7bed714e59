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

Where nobody else wants a product with the Hessian on the step, it is taken after the user's backward pass, in forward mode: the
gradient is known then, and their graph is gone. It takes a forward pass with its derivatives, one to two training steps, and next
to no memory. Where it is not known how the model moves, it is taken from a graph.

Reference: I. Goodfellow, Y. Bengio, A. Courville, "Deep Learning" (2016), section 8.2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import CURVATURE, GRADIENT, REPLAY, Instrument, Reading, Readings
from cockpit_lite.norms import total_norm
from cockpit_lite.probes.replay import Seen

if TYPE_CHECKING:
    from cockpit_lite.step import Step

_NOWHERE = "the gradient is zero, so it points nowhere"


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

    Raises:
        NotMeasured: if the gradient is zero.
    """
    rates = [learning_rates.get(name, 0.0) for name in curvature.parameters]
    gradient = curvature.flat_gradient()
    squared = gradient @ gradient
    if not bool(squared != 0):
        raise NotMeasured(_NOWHERE)
    along = gradient @ curvature.gradient_product
    if len(set(rates)) == 1:
        return _one_rate(rates[0], squared, along)
    pieces = curvature.unflatten(gradient)
    move = curvature.flatten([rate * piece for rate, piece in zip(rates, pieces, strict=True)])
    return GradientStep(along / squared, gradient @ move, 0.5 * (move @ curvature.product(move)))


def replayed_gradient_step(step: Step) -> GradientStep:
    """Return what :func:`gradient_step` does, when the backward pass is over.

    Raises:
        NotMeasured: if the call of the model cannot be repeated, or gives another gradient.
    """
    gradient, rates = step.gradient, [step.parameter_learning_rates.get(name, 0.0) for name in step.gradient]
    if any(value.is_sparse for value in gradient.values()):
        raise NotMeasured("a parameter has a sparse gradient, of which PyTorch has no second derivative")
    squared = total_norm(step.gradient_norms).square()
    weights = {name: parameter.detach() for name, parameter in step.parameters.items()}
    along = step.replay.expand(weights, gradient, Seen(squared, squared))
    if bool((along.slope - squared).abs() > step.replay.tolerance * squared):
        raise NotMeasured("a second forward pass gave another gradient")
    if len(set(rates)) == 1:
        return _one_rate(rates[0], squared, along.curvature)
    move = {name: rate * value for rate, (name, value) in zip(rates, gradient.items(), strict=True)}
    step_of_rates = step.replay.expand(weights, move)
    return GradientStep(along.curvature / squared, step_of_rates.slope, 0.5 * step_of_rates.curvature)


def _one_rate(rate: float, squared: Tensor, along: Tensor) -> GradientStep:
    return GradientStep(along / squared, rate * squared, 0.5 * rate**2 * along)


class CurvatureAlongGradient(Instrument):
    """Curvature of the mini-batch loss along its gradient, and the two Taylor terms of the plain gradient step."""

    name = "curvature_along_gradient"
    needs = (CURVATURE, GRADIENT, REPLAY)
    can_do_without = (REPLAY,)
    readings = ("curvature_along_gradient", "taylor_gradient_term", "taylor_curvature_term")
    preset = "standard"

    def __init__(self) -> None:
        self._found: Readings | None = None
        self._by_the_graph = False  # since the way behind it was tried in vain

    def prepare(self, step: Step) -> None:
        """Take it from the user's graph where that is opened anyway, or where there is no other way."""
        self._found = None
        curvature, replay = step.curvature, step.observed.get("replay")
        by_the_graph = replay is None or self._by_the_graph or replay.forward_mode_obstacle
        if by_the_graph or curvature.is_open or curvature.is_shared:
            self._found = self._readings(step, gradient_step(curvature, step.parameter_learning_rates), curvature.note)

    def measure(self, step: Step) -> Readings:
        found, self._found = self._found, None
        if found is not None:
            return found
        if not bool(total_norm(step.gradient_norms) != 0):
            raise NotMeasured(_NOWHERE)
        try:
            return self._readings(step, replayed_gradient_step(step), step.replay.note)
        except NotMeasured:
            self._by_the_graph = True
            raise

    def _readings(self, step: Step, found: GradientStep, note: str | None) -> Readings:
        readings = vars(found)
        if not step.parameter_learning_rates:  # an optimizer without a learning rate takes no such step
            readings = {self.name: readings[self.name]}
        return {name: Reading(value, note=note) for name, value in readings.items()}
