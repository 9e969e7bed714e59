"""Saturation: the share of sigmoid and tanh outputs in the flat part of the curve, by module and in the worst module.

    saturation/<module> = #{outputs whose derivative is below 1 % of its maximum} / #{outputs}
    saturation          = the largest of them

Counted over samples, positions and units, for modules like ``torch.nn.Sigmoid`` and ``torch.nn.Tanh`` (for their hard versions
the derivative is zero outside); functional calls and the gates inside recurrent layers cannot be seen. Where the curve is flat
next to no gradient comes through: near 1 the layers below do not learn. Then weights or inputs are too large: scale the inputs,
initialise smaller, normalise before the module, or use an activation function that does not saturate.

Source: Glorot, Bengio, Understanding the difficulty of training deep feedforward neural networks, 2010, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATIONS, Instrument, Readings, layerwise
from cockpit_lite.probes.moments import stacked
from cockpit_lite.step import Step


def saturated_share(calls: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Return the share from the number of saturated outputs and of outputs, call by call."""
    counts = [saturated for saturated, _ in calls]
    total = counts[0] if len(counts) == 1 else torch.stack([count.to(counts[0].device) for count in counts]).sum()
    return total / sum(count for _, count in calls)


class Saturation(Instrument):
    """Writes ``saturation`` and ``saturation/<module>``, shares between 0 and 1."""

    name = "saturation"
    needs = (ACTIVATIONS,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        by_module = {name: saturated_share(calls) for name, calls in step.activations.saturated.items()}
        if not by_module:
            raise NotMeasured("no sigmoid or tanh module was called on this step (functional calls cannot be seen)")
        return {"saturation": stacked(list(by_module.values())).max(), **layerwise("saturation", by_module)}
