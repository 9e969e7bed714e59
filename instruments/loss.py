"""Loss: the mini-batch objective, as the user's own code computed it, at every step.

    loss = sum of the roots of the step's backward passes

Accumulated micro-batches and several losses add up; an optimizer with a closure gives the value of its first evaluation, at the
weights before the step. Not a number or infinite: training is broken. Flat: see learning rate, data and wiring.
"""

from __future__ import annotations

from cockpit_lite.instrument import LOSS, Instrument, Readings
from cockpit_lite.step import Step


class Loss(Instrument):
    """Writes ``loss``."""

    name = "loss"
    needs = (LOSS,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        return {"loss": step.loss}
