"""Step time: seconds of training between two steps, on the host, with the time spent measuring taken out.

Includes data loading and everything else the loop does. On an accelerator the host runs ahead of the device, so single values
jitter; the median is right.
"""

from __future__ import annotations

from cockpit_lite.instrument import LOSS, Instrument, Readings
from cockpit_lite.step import Step


class StepTime(Instrument):
    """Writes ``step_time`` in seconds."""

    name = "step_time"
    needs = (LOSS,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        return {"step_time": step.training_seconds}
