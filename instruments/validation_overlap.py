"""Validation overlap: how many of the samples that the model sees without gradients were trained on before.

    validation_samples   samples in the calls without gradients since the last step
    validation_overlap   share of them that are, bit for bit, samples of an earlier measured step

Samples are told by a 64-bit hash of some thousand of their elements. 0 for a validation set of its own; anything else: the two
were split badly, or the data hold duplicates. Data augmentation hides an overlap, and steps that were not measured do, too, so
what is seen is the least there is.

Source: Kaufman, Rosset, Perlich, Stitelman, Leakage in data mining, 2012; Barz, Denzler, Do we train on test data?, 2020.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import DATA, Instrument, Readings
from cockpit_lite.step import Step

#: Elements of a sample that are looked at.
MOST_ELEMENTS = 2048
#: Elements that are mixed in one go: what they take then stays in the cache.
ELEMENTS_AT_ONCE = 2**15
#: Trained samples that are remembered, eight bytes each.
MOST_SAMPLES = 200_000
#: With fewer elements than this, equal samples are nothing special.
FEWEST_ELEMENTS = 8


def hashes(samples: Tensor) -> Tensor:
    """Return a 64-bit hash of each sample, along the first axis, shape (N,); exact, so it does not depend on the batch."""
    rows = samples.detach().reshape(len(samples), -1)
    rows = rows[:, :: -(-rows.shape[1] // MOST_ELEMENTS)]
    if rows.is_floating_point():
        rows = rows.float().contiguous().view(torch.int32)
    factors = _factors(rows.shape[1], rows.device)
    # In 64 bits a batch takes twice its memory: some samples at a time.
    return torch.cat([_hashes(some, factors) for some in rows.split(max(ELEMENTS_AT_ONCE // rows.shape[1], 1))])


@lru_cache(maxsize=4)
def _factors(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (count,), generator=generator) | 1).to(device)


def _hashes(rows: Tensor, factors: Tensor) -> Tensor:
    mixed = rows * factors  # around the end of 64 bits, on purpose
    return mixed.bitwise_xor_(mixed >> 29).sum(1)


class ValidationOverlap(Instrument):
    """Writes ``validation_samples``, a count, and ``validation_overlap``, a share between 0 and 1."""

    name = "validation_overlap"
    needs = (DATA,)
    readings = ("validation_overlap", "validation_samples")
    preset = "standard"

    def __init__(self) -> None:
        self._trained: Tensor | None = None

    def measure(self, step: Step) -> Readings:
        inputs, seen = step.data.inputs, step.data.without_gradients
        if inputs is None or inputs.dim() < 2 or inputs.is_complex() or inputs.shape[1:].numel() < FEWEST_ELEMENTS:
            raise NotMeasured("no samples were seen that could be told apart")
        if not len(inputs):
            raise NotMeasured("the batch is empty")
        own = hashes(inputs)
        shape = inputs.shape[1:]
        others = [hashes(batch.to(inputs)) for batch in seen if batch.shape[1:] == shape and batch.dtype == inputs.dtype]
        readings: dict[str, Tensor | float | NotMeasured] = {"validation_samples": float(sum(map(len, others)))}
        if not others:
            readings["validation_overlap"] = NotMeasured("the model was not called without gradients")
        elif self._trained is not None:
            readings["validation_overlap"] = torch.isin(torch.cat(others), self._trained).double().mean()
        self._trained = own if self._trained is None else torch.cat([self._trained, own])[-MOST_SAMPLES:]
        return readings
