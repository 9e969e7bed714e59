"""Update ratio: the size of the step relative to the weights, whole and by parameter.

    update_ratio = ||theta_{t+1} - theta_t|| / ||theta_t||

About 1e-3 is a common healthy value; above 1e-2 the weights are replaced within a hundred steps, below 1e-5 nothing
is learnt. Parameters that start at zero (biases) have no ratio on the first step and are left out there.
"""

from __future__ import annotations

import torch

from cockpit_lite.instrument import UPDATE, Instrument, Readings, layerwise
from cockpit_lite.norms import total_norm
from cockpit_lite.step import Step


class UpdateRatio(Instrument):
    """Writes ``update_ratio`` and ``update_ratio/<parameter>``, without unit."""

    name = "update_ratio"
    needs = (UPDATE,)
    preset = "light"

    def measure(self, step: Step) -> Readings:
        updates, weights = step.update_norms, step.weight_norms
        # Only weights have a scale of their own: the norm of a bias that starts at zero says nothing.
        ratios = {name: updates[name] / weights[name] for name in updates if step.parameters[name].dim() > 1}
        whole = total_norm(updates) / total_norm(weights).clamp(min=torch.finfo(torch.float32).tiny)
        return {"update_ratio": whole, **layerwise("update_ratio", ratios)}
