"""Symmetric units: weight matrices whose units cannot be told apart, and will not be by training.

    symmetric_units              how many weights have identical rows that also receive identical gradients
    symmetric_units/<parameter>  1 for each that has, written when it is found

Units with the same weights put out the same, and where they receive the same gradient as well they stay the same for ever: the
layer is one unit wide. That happens where all weights of a layer begin with one constant. Looked at on the first measured steps
only, and by exact comparison; a last layer that begins with zeros is no such case, since its units receive different gradients.

Source: Goodfellow, Bengio, Courville, Deep learning, 2016, section 8.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, Instrument, Readings
from cockpit_lite.step import Step


def rows_are_equal(matrix: Tensor) -> Tensor:
    """Return whether all rows, of (rows, ...), are the same, a scalar tensor."""
    return (matrix == matrix[:1]).all()


class SymmetricUnits(Instrument):
    """Writes ``symmetric_units``, a count, and ``symmetric_units/<parameter>``.

    Args:
        steps: How many measured steps are looked at.
    """

    name = "symmetric_units"
    needs = (GRADIENT,)
    preset = "standard"

    def __init__(self, steps: int = 3):
        self._left = steps

    def measure(self, step: Step) -> Readings:
        if self._left <= 0:
            raise NotMeasured("units are compared on the first measured steps only")
        self._left -= 1
        gradient = step.applied_gradient
        names = [
            name
            for name, parameter in step.parameters.items()
            if name in gradient and parameter.requires_grad and parameter.dim() > 1 and parameter.shape[0] > 1
        ]
        if not names:
            raise NotMeasured("no weight has several rows")
        same = [rows_are_equal(step.parameters[name].detach()) & rows_are_equal(gradient[name]) for name in names]
        found = torch.stack([value.to(same[0].device) for value in same])
        return {
            "symmetric_units": found.sum().double(),
            **{f"symmetric_units/{n}": f.double() for n, f in zip(names, found, strict=True)},
        }
