"""Wiring: whether gradient, optimizer and modes are connected as they should be. Exact; nothing is estimated.

    parameters_not_optimized    parameters that a gradient reaches, that no optimizer holds and that have never changed
    parameters_frozen           frozen weights that are still as their layer was initialised
    graph_cut                   parameters that no gradient reaches, in front of a module behind which all is reached
    tied_weights_apart          parameters that shared memory or values with another one at the start and do not any more
    modules_in_eval_mode        dropout and batch normalisation called in eval mode with gradients, in a model in eval mode
    forwards_in_train_mode      dropout and batch normalisation called in train mode without gradients since the last step
    batch_norm_values           the fewest values that a batch normalisation in train mode has normalised a channel over
    gradient_left_over          norm of the gradient that was there before the first backward pass over that of the gradient used

The first six are counts, ``<name>/<parameter or module>`` names what was counted. In a sound training all of them are 0. Names
are written when they change and not at every step.

Source: what the documentation of torch.nn and torch.optim asks of a training loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, WIRING, Instrument, Readings, layerwise
from cockpit_lite.norms import total_norm
from cockpit_lite.step import Step


def named(name: str, found: Iterable[str]) -> dict[str, float]:
    """Return the count of what was found, and a reading for each."""
    found = list(found)
    return {name: float(len(found)), **layerwise(name, dict.fromkeys(found, 1.0))}


class WiringCheck(Instrument):
    """Writes counts of wiring faults; see the module."""

    name = "wiring"
    needs = (WIRING, GRADIENT)
    readings = (
        "parameters_not_optimized",
        "parameters_frozen",
        "graph_cut",
        "tied_weights_apart",
        "modules_in_eval_mode",
        "forwards_in_train_mode",
        "batch_norm_values",
        "gradient_left_over",
    )
    preset = "light"

    def __init__(self) -> None:
        self._written: dict[str, float] = {}

    def measure(self, step: Step) -> Readings:
        wiring = step.wiring
        found = {
            **named("parameters_not_optimized", wiring.not_optimized),
            **named("parameters_frozen", wiring.frozen_fresh),
            "graph_cut": float(len(wiring.cut_off)),
            **layerwise("graph_cut", dict.fromkeys(wiring.boundary, 1.0)),
            **named("tied_weights_apart", wiring.tied_apart),
            **named("modules_in_eval_mode", wiring.in_eval_mode),
            **named("forwards_in_train_mode", wiring.validated_in_train_mode),
        }
        if wiring.values_per_channel:
            found["batch_norm_values"] = float(min(wiring.values_per_channel.values()))
            found.update(layerwise("batch_norm_values", {k: float(v) for k, v in wiring.values_per_channel.items()}))
        readings: dict[str, Any] = {}
        if not wiring.values_per_channel:
            readings["batch_norm_values"] = NotMeasured("no batch normalisation was called in train mode")
        news = {name: value for name, value in found.items() if "/" not in name or self._written.get(name) != value}
        self._written.update({name: value for name, value in found.items() if "/" in name})
        readings.update(news)
        if "applied_gradient" in step.observed:
            used = total_norm(step.applied_norms)
            readings["gradient_left_over"] = total_norm(wiring.left_over).to(used) / used
        return readings
