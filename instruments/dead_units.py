"""Dead units: the share of ReLU units that are zero for every sample, by module and in the worst module.

    dead_units/<module> = #{units that put out zero for all samples and positions of the step} / #{units}
    dead_units          = the largest of them

A unit is a feature, or a channel of a convolution; seen are modules like ``torch.nn.ReLU``, not ``torch.nn.functional.relu``. No
gradient flows through a unit that is zero, so one that is zero for every sample learns nothing on this step. Some are normal, the
more the smaller the batch; a share that grows over training and does not come back is capacity lost for good, usually to a
learning rate that is too high. Near 1: the module passes nothing on at all.

Source: Maas, Hannun, Ng, Rectifier nonlinearities improve neural network acoustic models, 2013; Lu, Shin, Su, Karniadakis, Dying
ReLU and initialization, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import ACTIVATIONS, Instrument, Readings, layerwise
from cockpit_lite.probes.moments import stacked
from cockpit_lite.step import Step


def dead_share(peaks: Sequence[Tensor]) -> Tensor:
    """Return the share of units whose greatest output is not above zero; NaN is no dead unit but another fault."""
    dead = [torch.count_nonzero(peak <= 0) for peak in peaks]
    total = dead[0] if len(dead) == 1 else torch.stack([count.to(dead[0].device) for count in dead]).sum()
    return total / sum(peak.numel() for peak in peaks)


class DeadUnits(Instrument):
    """Writes ``dead_units`` and ``dead_units/<module>``, shares between 0 and 1."""

    name = "dead_units"
    needs = (ACTIVATIONS,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        by_module = {name: dead_share(peaks) for name, peaks in step.activations.peaks.items()}
        if not by_module:
            raise NotMeasured("no ReLU module was called on this step (calls of functional.relu cannot be seen)")
        return {"dead_units": stacked(list(by_module.values())).max(), **layerwise("dead_units", by_module)}
