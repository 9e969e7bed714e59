"""Residual growth: by how much each block of a residual net multiplies the variance of the signal.

    residual_growth/<block> = Var(output of the block) / Var(its input)
    residual_growth         = the median of them over the second half of the blocks

of the blocks whose output is correlated with their input (at 0.3 or more): they add to it. A block that adds a branch of fixed
size, as after a normalisation, makes the variance grow linearly with depth, so the factor comes down to 1. A branch that is as
large as its input doubles it at every block.

Near 1 in the second half: the signal keeps its scale. About 2 throughout: it grows by a factor of a thousand in ten blocks; scale
the branches by 1 / sqrt(number of blocks), begin them at zero, or normalise in front of them.

Source: Zhang, Dauphin, Ma, Fixup initialization, 2019; De, Smith, Batch normalization biases residual blocks towards the identity
function in deep networks, 2020.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import BLOCKS, Instrument, Reading, Readings, layerwise
from cockpit_lite.probes.blocks import FEWEST_BLOCKS
from cockpit_lite.step import Step

#: A block whose output is less correlated with its input is not residual: what it computes hides its input, if it is there.
CORRELATED = 0.3


def median_late(table: Sequence[Sequence[float]]) -> float:
    """Return the median growth over the second half of the residual blocks, from rows of growth and correlation.

    Raises:
        NotMeasured: if there are too few of them.
    """
    growths = [growth for growth, correlation in table if abs(correlation) >= CORRELATED]
    if len(growths) < FEWEST_BLOCKS:
        raise NotMeasured(f"fewer than {FEWEST_BLOCKS} blocks add to their input")
    return statistics.median(growths[len(growths) // 2 :])


class ResidualGrowth(Instrument):
    """Writes ``residual_growth`` and ``residual_growth/<block>``, factors, in the first measured steps."""

    name = "residual_growth"
    needs = (BLOCKS,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        if len(step.blocks) < FEWEST_BLOCKS:
            raise NotMeasured(f"fewer than {FEWEST_BLOCKS} blocks were called")
        growths = {name: block.behind / block.before for name, block in step.blocks.items()}
        table = torch.stack([torch.stack([growths[name], block.correlation]) for name, block in step.blocks.items()])
        return {
            "residual_growth": Reading(table, on_host=median_late),
            **layerwise("residual_growth", growths),
        }
