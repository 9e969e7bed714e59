"""Distance: how far training has come from where it began.

    distance = ||theta_t - theta_0||,  theta_t the weights before step t

Grows like the square root of the steps while noise dominates, linearly while training goes one way. Keeps a copy of the first
weights: as much memory as the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import UPDATE, Instrument, Readings
from cockpit_lite.norms import difference_norm
from cockpit_lite.packed import packed
from cockpit_lite.step import Step


class Distance(Instrument):
    """Writes ``distance``, in the unit of the weights."""

    name = "distance"
    needs = (UPDATE,)
    preset = "light"

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._start = packed({name: parameter.detach() for name, parameter in parameters.items()})

    def resume(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._start = {}

    def measure(self, step: Step) -> Readings:
        if not self._start:
            raise NotMeasured("the run was resumed, and the weights that it began with are not known")
        return {"distance": difference_norm(step.weights_before, self._start)}
