"""Clipping: how much the gradient was shortened between backward and the optimizer, and the scale of a gradient scaler.

    clip_ratio = ||gradient that the optimizer used|| / ||gradient that backward left||
    loss_scale = what a gradient scaler multiplied the loss with

Both norms are in unscaled units. 1: nothing was clipped. Far below 1 at nearly every step: the threshold, not the gradient, sets
the length of the steps. A ratio near 1 / loss_scale: clipped before unscaling. The loss scale halves where half precision
overflows; now and then is how a scaler searches, step after step it finds nothing that fits.

Source: Pascanu, Mikolov, Bengio, On the difficulty of training recurrent neural networks, 2013; Micikevicius and others, Mixed
precision training, 2018.
"""

from __future__ import annotations

from typing import Any

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, Instrument, Readings
from cockpit_lite.norms import total_norm
from cockpit_lite.step import Step


class Clipping(Instrument):
    """Writes ``clip_ratio``, without unit, and ``loss_scale`` where there is one."""

    name = "clip_ratio"
    needs = (GRADIENT,)
    readings = ("clip_ratio", "loss_scale")
    preset = "light"

    def measure(self, step: Step) -> Readings:
        readings: dict[str, Any] = {
            "loss_scale": NotMeasured("there is no gradient scaler") if step.loss_scale is None else step.loss_scale
        }
        if not step.gradient_was_changed:
            readings["clip_ratio"] = 1.0
        else:
            applied = step.applied_norms
            kept = {name: norm for name, norm in step.gradient_norms.items() if name in applied}
            readings["clip_ratio"] = total_norm(applied) / total_norm(kept)
        return readings
