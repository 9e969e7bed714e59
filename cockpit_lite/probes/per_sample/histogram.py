"""Histograms over the elements of per-sample gradients, of the whole model and of single parameters, sampled or exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.probes.bins import counted
from cockpit_lite.probes.per_sample.drawing import in_turn
from cockpit_lite.probes.per_sample.sampled import SampledElements, all_elements, drawn_elements
from cockpit_lite.step import Step


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


@dataclass(frozen=True)
class Histograms:
    """Elements in every bin, of a million: they sum to a million less what is in no bin (NaN), up to rounding.

    Attributes:
        model: Of the whole model.
        by_parameter: Name -> that of a parameter, for those whose turn it is.
    """

    model: Reading
    by_parameter: dict[str, Reading]


def element_histograms(step: Step, binning: Binning, exact: bool) -> Histograms:
    """Return the histograms of a step.

    Args:
        step: With the elements that were drawn; with the per-sample gradients themselves if they are to be exact.
        binning: The bins.
        exact: Whether to look at all elements.
    """
    if exact:
        everything, tables = _everything(step, binning)
        return _finished(step, everything, tables, in_turn(everything.names, step.index))
    sample, drawing = step.once(drawn_elements), step.per_sample.drawing
    return _finished(step, sample, binning.tables(sample), [] if drawing is None else drawing.alone)


def _finished(step: Step, sample: SampledElements, tables: Tensor, alone: Sequence[str]) -> Histograms:
    """Return the histograms from the counts of every parameter; of those in ``alone`` their own, too."""
    statistics, samples = step.per_sample, len(sample.gradients)

    def reading(values: Tensor, complete: bool, notes: Sequence[str] = ()) -> Reading:
        exact = complete and samples == statistics.batch_size
        kind = "conditional" if statistics.conditional else "exact" if exact else "estimated"
        return Reading(values, kind=kind, note=", ".join(notes) or None)

    own_weights, model_weights = sample.weights
    flat = tables.flatten(1).to(sample.weights.dtype)
    whole = (model_weights @ flat).round_().reshape(tables.shape[1:])
    found = (flat * own_weights[:, None]).round_().reshape(tables.shape)
    drawn, notes = sum(sample.draws), []
    if drawn < sample.of or samples < statistics.batch_size:
        # To one digit: small parameters whose turn it is are taken whole, and a note that is never the same fills the log.
        notes.append(f"from some {float(f'{drawn:.1g}'):.0f} of {sample.of} elements of {samples} samples")
    if statistics.not_covered:
        notes.append(f"without {len(statistics.not_covered)} parameters that are not covered")
    places = {name: place for place, name in enumerate(sample.names)}
    own = [(name, places[name]) for name in alone if name in places]
    return Histograms(
        reading(whole, drawn == sample.of, notes),
        {name: reading(found[place], sample.draws[place] == sample.sizes[place]) for name, place in own},
    )


def _everything(step: Step, binning: Binning) -> tuple[SampledElements, Tensor]:
    """Return the counts of every parameter from all of its elements, and what they are of."""
    count = step.per_sample.batch_size
    if not count:
        raise NotMeasured("the batch holds no sample")
    tables: dict[str, Tensor] = {}
    for name, part in all_elements(step):
        (found,) = binning.tables(part)
        tables[name] = tables[name] + found if name in tables else found
    if not tables:
        raise NotMeasured("no per-sample gradient was seen on this step")
    sizes = [step.parameters[name].numel() for name in tables]
    shares = [size / sum(sizes) for size in sizes]
    nothing = torch.empty(count, 0, device=next(iter(tables.values())).device)  # the elements themselves are gone
    return SampledElements(list(tables), sizes, shares, sizes, sum(sizes), nothing, nothing[0]), torch.stack(
        list(tables.values())
    )
