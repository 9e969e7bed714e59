"""Labels: how the classes are spread over the batch and over the run.

    batch_label_entropy  -sum_c p_c ln p_c of the labels of this batch, in nats
    label_entropy        the same of all labels seen on measured steps: what a guess by frequency costs
    class_imbalance      how many times the most frequent class comes for once the rarest that was seen
    rarest_class_recall  share of the rarest class's labels, over the measured steps, that were predicted
    batch_accuracy       share of the batch's labels that were predicted

A batch entropy far below that of the run: the data come sorted by class. A loss that stays at the label entropy: nothing in the
inputs is used. A recall near 0 while the accuracy is fine: the rare class is given up.

Source: Cover, Thomas, Elements of information theory, 2006, chapter 2; He, Garcia, Learning from imbalanced data, 2009.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import DATA, Instrument, Readings
from cockpit_lite.probes.data import rows_and_classes
from cockpit_lite.step import Step


def entropy(counts: Tensor) -> Tensor:
    """Return the entropy of a distribution given by counts (C,), in nats."""
    return -torch.special.xlogy(counts, counts / counts.sum()).sum() / counts.sum()


def imbalance(counts: Tensor) -> Tensor:
    """Return the largest count over the smallest one that is not zero."""
    return counts.max() / torch.where(counts > 0, counts, torch.full_like(counts, torch.inf)).min()


class Labels(Instrument):
    """Writes entropies in nats, and shares; see the module."""

    name = "labels"
    needs = (DATA,)
    readings = ("label_entropy", "batch_label_entropy", "class_imbalance", "rarest_class_recall", "batch_accuracy")
    preset = "standard"

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._hits: Tensor | None = None

    def measure(self, step: Step) -> Readings:
        found = step.data.loss_inputs
        if found is None or found.kind not in ("cross_entropy", "nll"):
            raise NotMeasured("the loss is no classification whose labels can be seen")
        rows, targets = rows_and_classes(found)
        classes = rows.shape[1]
        valid = (targets != found.ignore_index).double()
        labels = targets.clamp(0, classes - 1)
        counts = valid.new_zeros(classes).scatter_add_(0, labels, valid)
        right = valid * (rows.argmax(1) == labels)
        hits = valid.new_zeros(classes).scatter_add_(0, labels, right)
        if self._counts is None or self._hits is None or self._counts.shape != counts.shape:
            self._counts, self._hits = counts, hits
        else:
            self._counts, self._hits = self._counts + counts, self._hits + hits
        rarest = torch.where(self._counts > 0, self._counts, torch.full_like(counts, torch.inf)).argmin()
        return {
            "label_entropy": entropy(self._counts),
            "batch_label_entropy": entropy(counts),
            "class_imbalance": imbalance(self._counts),
            "rarest_class_recall": self._hits[rarest] / self._counts[rarest],
            "batch_accuracy": right.sum() / valid.sum(),
        }
