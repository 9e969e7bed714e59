"""Histograms over the elements of per-sample gradients, of every parameter and of the whole model, sampled or exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.probes.bins import counted
from cockpit_lite.probes.per_sample.sampled import all_elements, sampler
from cockpit_lite.step import Step

#: A histogram says how many of so many elements are in each bin: integers are short in the log.
OF = 1_000_000

#: Per-sample gradient elements (n, k) and their parameters (k,) -> the bin of each, from 0 (n, k).
Binning = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ElementHistograms:
    """Elements in every bin, of a million. They sum to a million less what is in no bin (NaN), up to rounding.

    Attributes:
        whole: Of the whole model, shape (bins,).
        by_parameter: Parameter name -> its own, shape (bins,).
        how: What of the elements was looked at, for the whole model; empty if all of them.
        estimated: Names of the parameters of which not every element was looked at.
        conditional: Whether batch normalisation couples the samples.
    """

    whole: Tensor
    by_parameter: dict[str, Tensor]
    how: str
    estimated: frozenset[str]
    conditional: bool

    def reading(self) -> Tensor | Reading:
        """Return the histogram of the whole model as a reading."""
        if self.conditional:
            return Reading(self.whole, kind="conditional", note=self.how or None)
        return Reading(self.whole, kind="estimated" if self.estimated else "exact", note=self.how or None)

    def layer_readings(self) -> dict[str, Tensor | Reading]:
        """Return those of the parameters as readings."""
        kind = "conditional" if self.conditional else "estimated"
        return {
            name: Reading(values, kind=kind) if self.conditional or name in self.estimated else values
            for name, values in self.by_parameter.items()
        }


def element_histograms(step: Step, binning: Binning, bins: int, elements: int | None) -> ElementHistograms:
    """Return the histograms of a step.

    Args:
        step: With per-sample gradients.
        binning: Which bin an element belongs to; ``bins``, one more than there are, for none.
        bins: Number of bins.
        elements: How many of the model's elements to draw beside a few of every parameter; ``None``: look at all.
    """
    statistics = step.per_sample
    if elements is None:
        counts: dict[str, Tensor] = {}
        if not statistics.batch_size:
            raise NotMeasured("the batch holds no sample")
        for name, part in all_elements(step):
            found = counted(binning(part.gradients, part.parameters), bins + 1)[:bins]
            counts[name] = counts[name] + found if name in counts else found
        names, sizes = list(counts), [step.parameters[name].numel() for name in counts]
        draws, table, samples = sizes, torch.stack(list(counts.values())), statistics.batch_size
    else:
        sample = step.once(sampler(elements))
        names, sizes, draws, samples = sample.names, sample.sizes, sample.draws, len(sample.gradients)
        index = binning(sample.gradients, sample.parameters) + sample.owners * (bins + 1)
        table = counted(index, len(names) * (bins + 1)).reshape(len(names), bins + 1)[:, :bins]
    shares = table / (torch.tensor(draws, device=table.device)[:, None] * samples)
    whole = torch.tensor(sizes, device=table.device) / sum(sizes) @ shares
    scaled = (shares * OF).round_()
    complete = samples == statistics.batch_size
    notes = [] if complete and draws == sizes else [f"from {sum(draws)} of {sum(sizes)} elements of {samples} samples"]
    if statistics.not_covered:
        notes.append(f"without {len(statistics.not_covered)} parameters that are not covered")
    return ElementHistograms(
        (whole * OF).round_(),
        dict(zip(names, scaled, strict=True)),
        ", ".join(notes),
        frozenset(name for name, size, draw in zip(names, sizes, draws, strict=True) if draw < size or not complete),
        bool(statistics.conditional),
    )
