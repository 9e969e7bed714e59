"""Learning rate: what the optimizer's parameter groups hold, at every step.

``learning_rate`` is that of the first group; with several groups each has ``learning_rate/group<number>`` as well. A
value that jumps or falls to zero long before the end of training points to a scheduler that is stepped at the wrong place.
"""

from __future__ import annotations

from cockpit_lite.instrument import LOSS, Instrument, Readings
from cockpit_lite.step import Step


class LearningRate(Instrument):
    """Writes ``learning_rate`` and ``learning_rate/group<number>``."""

    name = "learning_rate"
    needs = (LOSS,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        readings = {"learning_rate": step.learning_rate}
        if len(step.learning_rates) > 1:
            readings.update({f"learning_rate/group{number}": rate for number, rate in enumerate(step.learning_rates)})
        return readings
