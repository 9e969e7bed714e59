"""Distance: how far training has come from where it began.

    distance = ||theta_t - theta_0||,  theta_t the weights before step t

Grows like the square root of the steps while noise dominates, linearly while training goes one way. Keeps a copy of the first
weights: as much memory as the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import UPDATE, Instrument, Readings
from cockpit_lite.norms import difference_norms, total_norm
from cockpit_lite.step import Step


class Distance(Instrument):
    """Writes ``distance``, in the unit of the weights."""

    name = "distance"
    needs = (UPDATE,)
    preset = "light"

    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._start: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def resume(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._start = {}

    def measure(self, step: Step) -> Readings:
        if not self._start:
            raise NotMeasured("the run was resumed, and the weights that it began with are not known")
        start, now = self._start, step.weights_before
        return {"distance": total_norm(difference_norms({name: now[name] for name in now if name in start}, start))}
