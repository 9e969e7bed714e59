"""Gradient norm: the length of the mini-batch gradient, whole and by parameter, before and after clipping.

    grad_norm = ||G||,  G the gradient that backward left behind, summed over accumulated micro-batches

Far above its own history while the loss rises: exploding gradients. Falling geometrically from the last layer to the
first: vanishing gradients. ``grad_norm_clipped`` appears where the gradient was changed between backward and the optimizer step.
"""

from __future__ import annotations

from typing import Any

from cockpit_lite.instrument import GRADIENT, Instrument, Readings, layerwise
from cockpit_lite.norms import total_norm
from cockpit_lite.step import Step


class GradientNorm(Instrument):
    """Writes ``grad_norm``, ``grad_norm/<parameter>`` and, with clipping, ``grad_norm_clipped``."""

    name = "grad_norm"
    needs = (GRADIENT,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        norms = step.gradient_norms
        readings: dict[str, Any] = {"grad_norm": total_norm(norms), **layerwise("grad_norm", norms)}
        if step.gradient_was_changed:
            readings["grad_norm_clipped"] = total_norm(step.applied_norms)
        return readings
