"""Weight decay ratio: how hard weight decay pulls at the weights, compared with what the data want.

    weight_decay_ratio = || w theta || / || G ||               decay through the gradient (SGD, Adam: L2), w the decay
    weight_decay_ratio = || e w theta || / || d + e w theta || decoupled decay (AdamW), d the step that was taken

Without unit; parameters without decay are left out. Far below 1 in most trainings. Above 1 the weights shrink whatever the data
say, unless both are in balance: at the minimum of a regularised loss the ratio is 1 and the norm of the weights stays as it is.

Source: Loshchilov, Hutter, Decoupled weight decay regularization, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, UPDATE, Instrument, Readings
from cockpit_lite.norms import parameter_norms, total_norm
from cockpit_lite.step import Step


def decay_ratio(pull: Mapping[str, Tensor], push: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of what decay does over the norm of what the data do, both by parameter; infinite without the latter."""
    return total_norm(parameter_norms(pull)) / total_norm(parameter_norms(push))


class WeightDecayRatio(Instrument):
    """Writes ``weight_decay_ratio``, without unit, and ``weight_decay``, the largest decay of the parameter groups."""

    name = "weight_decay_ratio"
    needs = (GRADIENT, UPDATE)
    readings = ("weight_decay_ratio", "weight_decay")
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        names = {id(parameter): name for name, parameter in step.parameters.items()}
        pull: dict[str, Tensor] = {}
        push: dict[str, Tensor] = {}
        largest = 0.0
        for optimizer in step.optimizers:
            for group in optimizer.param_groups:
                decay = group.get("weight_decay", 0.0)
                if not decay:
                    continue
                largest = max(largest, decay)
                decoupled = group.get("decoupled_weight_decay", "AdamW" in type(optimizer).__name__)
                for parameter in group["params"]:
                    name = names.get(id(parameter), "")
                    if name not in step.applied_gradient or name not in step.update:
                        continue
                    if decoupled:
                        pull[name] = step.weights_before[name] * (group["lr"] * decay)
                        push[name] = step.update[name] + pull[name]
                    else:
                        pull[name] = step.weights_before[name] * decay
                        push[name] = step.applied_gradient[name]
        if not pull:
            raise NotMeasured("no parameter has weight decay")
        return {"weight_decay_ratio": decay_ratio(pull, push), "weight_decay": largest}
