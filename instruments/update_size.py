"""Update size: how far the optimizer really moved, momentum, clipping and weight decay included.

    update_size = ||theta_{t+1} - theta_t||

Zero: the optimizer does not step. Growing while the gradient does not: momentum or the learning rate is too high.
"""

from __future__ import annotations

from cockpit_lite.instrument import UPDATE, Instrument, Readings
from cockpit_lite.norms import total_norm
from cockpit_lite.step import Step


class UpdateSize(Instrument):
    """Writes ``update_size``, in the unit of the weights."""

    name = "update_size"
    needs = (UPDATE,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        return {"update_size": total_norm(step.update_norms)}
