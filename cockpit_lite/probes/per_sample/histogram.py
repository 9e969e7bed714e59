"""Histograms over the elements of per-sample gradients, of the whole model and of single parameters, sampled or exact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.probes.bins import counted
from cockpit_lite.probes.per_sample.sampled import SampledElements, all_elements, sample_of, sampler
from cockpit_lite.step import Step

#: A histogram says how many of so many elements are in each bin: integers are short in the log.
OF = 1_000_000


@dataclass(frozen=True)
class Binning:
    """Which bin of a table an element belongs to.

    Attributes:
        shape: Number of bins along every axis of the table.
        index: Elements -> their places (n, K) in the flattened table that has one more bin along every axis, for none.
    """

    shape: tuple[int, ...]
    index: Callable[[SampledElements], Tensor]

    def tables(self, sample: SampledElements) -> Tensor:
        """Return the counts of every parameter of a sample, shape (P, *shape)."""
        larger = [count + 1 for count in self.shape]
        cells, parameters = torch.Size(larger).numel(), len(sample.names)
        index = self.index(sample)
        if parameters > 1:
            index = index + sample.owners * cells
        tables = counted(index, parameters * cells).reshape(parameters, *larger)
        return tables[(slice(None), *(slice(count) for count in self.shape))]


def model_histogram(step: Step, binning: Binning, elements: int | None) -> Tensor | Reading:
    """Return the histogram of the whole model: elements in every bin, of a million.

    It sums to a million less what is in no bin (NaN), up to rounding.

    Args:
        step: With per-sample gradients.
        binning: The bins.
        elements: How many of the model's elements to draw; ``None``: look at all.
    """
    statistics = step.per_sample
    note = ""
    if elements is None:
        counts = _all_counts(step, binning)
        whole = torch.stack(list(counts.values())).sum(0).double()
        found = whole * (OF / (statistics.batch_size * sum(step.parameters[name].numel() for name in counts)))
    else:
        sample = step.once(sampler(elements))
        samples = sample.gradients.shape[0]
        weights = [OF * share / (draws * samples) for share, draws in zip(sample.shares, sample.draws, strict=True)]
        found = _weighted(binning.tables(sample), weights)
        if sum(sample.draws) < sample.of or samples < statistics.batch_size:
            note = f"from {sum(sample.draws)} of {sample.of} elements of {samples} samples"
    kind = "conditional" if statistics.conditional else "estimated" if note else "exact"
    if statistics.not_covered:
        without = f"without {len(statistics.not_covered)} parameters that are not covered"
        note = f"{note}, {without}" if note else without
    return Reading(found.round_(), kind=kind, note=note or None)


def parameter_histograms(
    step: Step, binning: Binning, names: Collection[str], exact: bool = False
) -> dict[str, Tensor | Reading]:
    """Return the histograms of some parameters by name, each as that of the model.

    Args:
        step: With per-sample gradients.
        binning: The bins.
        names: Which parameters.
        exact: Whether to look at all their elements.
    """
    if not names:
        return {}
    statistics = step.per_sample
    if exact:
        counts, samples = _all_counts(step, binning), statistics.batch_size
        sizes = draws = [step.parameters[name].numel() for name in names]
        tables = torch.stack([counts[name] for name in names])
    else:
        sample = sample_of(step, list(names))
        tables, sizes, draws, samples = binning.tables(sample), sample.sizes, sample.draws, sample.gradients.shape[0]
    scale = torch.tensor([OF / (count * samples) for count in draws], device=tables.device)
    found = (tables * scale.reshape(-1, *[1] * len(binning.shape))).round_().unbind()
    kinds = [
        "conditional" if statistics.conditional else "exact" if draw == size and samples == statistics.batch_size else "estimated"
        for draw, size in zip(draws, sizes, strict=True)
    ]
    return {name: Reading(table, kind=kind) for name, table, kind in zip(names, found, kinds, strict=True)}


def _weighted(tables: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the sum of the tables, each times its weight."""
    if len(weights) == 1 or all(weight == weights[0] for weight in weights):
        return tables.sum(0) * weights[0]
    return torch.tensordot(torch.tensor(weights, device=tables.device), tables.float(), 1)


def _all_counts(step: Step, binning: Binning) -> dict[str, Tensor]:
    """Return the counts of every parameter, from all of its elements."""
    if not step.per_sample.batch_size:
        raise NotMeasured("the batch holds no sample")
    counts: dict[str, Tensor] = {}
    for name, part in all_elements(step):
        (found,) = binning.tables(part)
        counts[name] = counts[name] + found if name in counts else found
    return counts
