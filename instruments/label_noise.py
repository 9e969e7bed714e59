"""Label noise: the share of the labels that look as if they were drawn by lot.

    label_noise = #{n : more than half of the classes are likelier than the label of n} / N  *  C / floor(C / 2)

for C classes: the label of a hard sample is the second or third guess of a net that has learnt something; a wrong label stands
anywhere, in the lower half of the ranks as often as chance has it. So the share of those, scaled up to all ranks, estimates how
many labels are wrong. At the start it is 1, since the net knows nothing; it falls as the net learns, and stays at the share of
wrong labels until they are learnt by heart.

Near 0 for clean labels. A level that stays while most of the batch is predicted right: about so many labels are wrong;
``hardest_by_loss`` names the samples.

Source: Arpit and others, A closer look at memorization in deep networks, 2017; Northcutt and others, Confident learning, 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import DATA, Instrument, Reading, Readings
from cockpit_lite.probes.data import rows_and_classes
from cockpit_lite.step import Step

#: With fewer classes the second guess is in the lower half already.
FEWEST_CLASSES = 4
#: Rows that are looked at, evenly spread: a language model has thousands in a batch.
MOST_ROWS = 1024


def share_by_lot(scores: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Return the estimated share of labels that were drawn by lot.

    Args:
        scores: Of rows and classes, in any unit.
        labels: Of the rows.
        valid: Which rows count.
    """
    classes = scores.shape[1]
    own = scores.gather(1, labels[:, None])
    likelier = (scores > own).sum(1)
    low = (likelier >= classes - classes // 2) & valid
    return low.double().sum() / valid.double().sum() * (classes / (classes // 2))


class LabelNoise(Instrument):
    """Writes ``label_noise``, an estimated share; above 1 where the net ranks the labels lower than chance would."""

    name = "label_noise"
    needs = (DATA,)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        found = step.data.loss_inputs
        if found is None or found.kind not in ("cross_entropy", "nll"):
            raise NotMeasured("the loss is no classification whose labels can be seen")
        rows, targets = rows_and_classes(found)
        if rows.shape[1] < FEWEST_CLASSES:
            raise NotMeasured(f"with fewer than {FEWEST_CLASSES} classes a wrong label cannot be told from a hard sample")
        every = -(-len(rows) // MOST_ROWS)
        rows, targets = rows[::every], targets[::every]
        valid = targets != found.ignore_index
        share = share_by_lot(rows, torch.where(valid, targets, 0).clamp(0, rows.shape[1] - 1), valid)
        return {"label_noise": Reading(share, kind="estimated")}
