"""Hardest samples: which samples of the batch have the largest losses, and which pull the weights hardest.

    hardest_samples = max_n ||g_n||^2 / sum_n ||g_n||^2

the share of the squared gradient norm that one sample has, between 1/N and 1. Far above the others' from step to step: a few
samples decide where training goes, such as wrong labels, outliers, or a broken input. Late in training, when most samples are
fitted, it rises by itself.

``hardest_by_gradient`` and ``hardest_by_loss`` name them: the eight samples with the largest gradient norm ||g_n|| and the eight
with the largest loss, largest first, as rows of index in the batch, loss, and gradient norm. The index counts along the batch as
the model got it, over all micro-batches of the step. Loss and gradient norm are the sample's own, N times what it
contributes to the loss of the batch and to its gradient; a NaN comes first, and NaN stands for what is not known. In
batches of fewer than eight the rows at the end are NaN. A wrong label shows in both lists again and again.

Source: Katharopoulos, Fleuret, Not all samples are created equal: deep learning with importance sampling, 2018 (gradient norms);
Pleiss, Zhang, Elenberg, Weinberger, Identifying mislabeled data using the area under the margin ranking, 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import PER_SAMPLE_NORMS, SAMPLE_LOSSES, Instrument, Reading, Readings
from cockpit_lite.probes.noise import contributions_squared_norms
from cockpit_lite.step import Step

#: How many samples are named.
MOST = 8


def largest_and_sum(squared_norms: Tensor) -> Tensor:
    """Return the largest of the samples' squared gradient norms, and their sum, shape (2,)."""
    return torch.stack([squared_norms.max(), squared_norms.sum()])


def _share(found: Sequence[float]) -> float:
    part, whole = found
    if whole == 0:
        raise NotMeasured("the gradient is zero in every sample")
    return part / whole


def hardest(by: Sequence[Tensor], losses: Tensor | None, norms: Tensor | None) -> list[Tensor]:
    """Return index, loss and gradient norm of the samples that are largest by something, shape (8, 3), for each such thing.

    Args:
        by: What they are sorted by, each of shape (N,).
        losses: Of the samples; None: not known.
        norms: Of the samples' gradients; None: not known.
    """
    missing = torch.full_like(by[0], torch.nan)
    columns = [missing if values is None else values.to(missing) for values in (losses, norms)]
    samples = torch.stack([torch.arange(len(missing), dtype=missing.dtype, device=missing.device), *columns], 1)
    order = torch.stack([values.to(missing) for values in by]).topk(min(MOST, len(missing))).indices
    tables = samples[order]
    return list(F.pad(tables, (0, 0, 0, MOST - tables.shape[1]), value=torch.nan).unbind())


class HardestSamples(Instrument):
    """Writes ``hardest_samples``, a share, and ``hardest_by_gradient`` and ``hardest_by_loss``, small tables."""

    name = "hardest_samples"
    needs = (PER_SAMPLE_NORMS, SAMPLE_LOSSES)
    readings = ("hardest_samples", "hardest_by_gradient", "hardest_by_loss")
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        losses, no_losses = self._losses(step)
        squared_norms, no_norms = self._squared_norms(step)
        norms = None if squared_norms is None else len(squared_norms) * squared_norms.sqrt()
        kind = "conditional" if squared_norms is not None and step.per_sample.conditional else "exact"
        found: dict[str, Tensor | float | Reading | NotMeasured] = {"hardest_samples": no_norms}
        if squared_norms is not None:
            found["hardest_samples"] = Reading(largest_and_sum(squared_norms), kind=kind, on_host=_share)
        known = [values for values in (norms, losses) if values is not None]
        tables = iter(hardest(known, losses, norms) if known else [])
        without_losses = None if losses is not None else f"without losses, because {no_losses}"
        without_norms = None if norms is not None else f"without gradient norms, because {no_norms}"
        found["hardest_by_gradient"] = no_norms if norms is None else Reading(next(tables), kind=kind, note=without_losses)
        found["hardest_by_loss"] = no_losses if losses is None else Reading(next(tables), note=without_norms)
        return found

    @staticmethod
    def _losses(step: Step) -> tuple[Tensor | None, NotMeasured]:
        try:
            losses = step.sample_losses
        except NotMeasured as reason:
            return None, reason
        if len(losses) < 2:
            return None, NotMeasured("the batch holds one sample")
        return losses * len(losses), NotMeasured("")

    @staticmethod
    def _squared_norms(step: Step) -> tuple[Tensor | None, NotMeasured]:
        try:
            return contributions_squared_norms(step.per_sample), NotMeasured("")
        except NotMeasured as reason:
            return None, reason
