"""Which elements of the per-sample gradients are looked at on a step: decided before it, and read off a layer as it is measured.

So nothing of a layer has to be kept for them. Some elements are drawn, new ones at every step, so that what one draw misses is
not missed for good, and looked at in all samples; of a large batch in every so manieth sample, beginning with any.

For the whole model an element of any parameter is drawn as likely as any other: the parameters share the elements out by size,
and where that leaves a fraction, chance decides. So small parameters are drawn now and then only, and those that are not cost
nothing. Beside that some more are drawn of two parameters, which take turns, enough for histograms of their own. In the mean
over many draws both are exactly those of all elements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cockpit_lite.probes.per_sample.forms import Form
from cockpit_lite.probes.per_sample.layers import LayerGradients

#: Parameters of a step that have histograms of their own, and how many elements are drawn of each for that.
TURNS, LEAST = 2, 32
#: Multiples of it, whole numbers left out, are spread evenly, and so are every second, every tenth one and so on.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
#: A batch of twice as many samples and more is not looked at whole.
SAMPLES = 32


class Drawn(NamedTuple):
    """What was drawn of one parameter.

    Attributes:
        positions: In the flattened parameter, integers on the CPU, shape (k,).
        values: The contributions of some samples there, shape (n, k).
    """

    positions: Tensor
    values: Tensor


class Drawing:
    """What is to be drawn of a model on one step.

    Args:
        seed: The number of the step: the user's random numbers stay theirs.
        shapes: Of the parameters, by name.
        elements: How many elements of the whole model; one that has no more is taken whole.

    Attributes:
        shared: How many of these each parameter gets.
        alone: The parameters that have histograms of their own, of which some more are drawn.
    """

    def __init__(self, seed: int, shapes: Mapping[str, torch.Size], elements: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        self.shared = sizes if sum(sizes.values()) <= elements else _shared_out(sizes, elements, self._generator)
        self._start = float(torch.rand((), generator=self._generator))
        self.alone = in_turn(list(shapes), seed)

    def count(self, name: str) -> int:
        """Return how many elements are drawn of a parameter."""
        return self.shared.get(name, 0) + LEAST * (name in self.alone)

    def take(self, name: str, parts: Sequence[Form], shape: torch.Size) -> Drawn | None:
        """Return what is drawn of a parameter; None if it is not its turn.

        Args:
            name: Of the parameter.
            parts: The form of every micro-batch, in order.
            shape: Of the parameter.
        """
        count = self.count(name)
        if not count:
            return None
        layer = LayerGradients(parts, shape)
        if not layer.batch_size:
            return None
        every = max(1, layer.batch_size // SAMPLES)
        positions = layer.choose(count, self._generator)
        return Drawn(positions, layer.elements(positions, int(self._start * every), every))


def in_turn(names: Sequence[str], index: int) -> list[str]:
    """Return the parameters whose turn it is to have histograms of their own: in time all, whatever the schedule."""
    first, count = int(index * _GOLDEN_RATIO % 1 * len(names)), min(TURNS, len(names))
    return [names[(first + number * len(names) // count) % len(names)] for number in range(count)]


def _shared_out(sizes: Mapping[str, int], elements: int, generator: torch.Generator) -> dict[str, int]:
    """Return how many of the elements each parameter gets: in the mean over the draws exactly its share by size."""
    total, before = sum(sizes.values()), 0
    place = float(torch.rand((), generator=generator, dtype=torch.float64))
    counts = {}
    for name, size in sizes.items():
        first, before = int(place + before * elements / total), before + size
        counts[name] = int(place + before * elements / total) - first
    return counts
