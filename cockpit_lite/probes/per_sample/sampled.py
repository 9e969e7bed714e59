"""A random sample of the elements of all per-sample gradients: what histograms are made of.

The N x D elements of a batch are too many to look at, and most of them say the same. Some are drawn, new ones at every step, so
that what one draw misses is not missed for good, and looked at in all samples; of a large batch in every so manieth sample,
beginning with any.

For the whole model an element of any parameter is drawn as likely as any other: the parameters share the elements out by size,
and where that leaves a fraction, chance decides. So small parameters are drawn now and then only, and those that are not cost
nothing. Beside that some more are drawn of two parameters, which take turns, enough for histograms of their own. In the mean
over many draws both are exactly those of all elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.bins import logarithms_of
from cockpit_lite.step import Step

#: Parameters of a step that have histograms of their own, and how many elements are drawn of each for that.
TURNS, LEAST = 2, 32
#: Multiples of it, whole numbers left out, are spread evenly, and so are every second, every tenth one and so on.
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
#: A batch of twice as many samples and more is not looked at whole.
SAMPLES = 32


@dataclass(frozen=True)
class SampledElements:
    """K elements of P parameters, in the order of the parameters.

    Attributes:
        names: Names of the parameters.
        sizes: How many elements each parameter has.
        shares: What share of all that were drawn from each parameter stands for; they sum to one.
        draws: How many elements were drawn of each.
        of: How many there were to be drawn from, those of parameters of which none was drawn included.
        gradients: ``g_nj = N c_nj`` of n of the samples, in float32, shape (n, K).
        parameters: ``theta_j``, in float32, shape (K,).
    """

    names: list[str]
    sizes: list[int]
    shares: list[float]
    draws: list[int]
    of: int
    gradients: Tensor
    parameters: Tensor

    @cached_property
    def owners(self) -> Tensor:
        """To which parameter an element belongs, integers, shape (K,)."""
        counts = torch.tensor(self.draws)
        return torch.repeat_interleave(counts, output_size=self.gradients.shape[1]).to(self.gradients.device)

    @cached_property
    def logarithms(self) -> Tensor:
        """Logarithms of the gradients' magnitudes, shape (n, K): several histograms ask for them."""
        return logarithms_of(self.gradients)


@lru_cache(maxsize=8)
def sampler(elements: int) -> Callable[[Step], SampledElements]:
    """Return the function that draws of the whole model, for ``step.once``: instruments that ask for as many elements share them.

    Args:
        elements: How many; a model that has no more is taken whole.
    """

    def draw(step: Step) -> SampledElements:
        sizes = {name: shape.numel() for name, shape in step.per_sample_gradients.shapes.items()}
        generator = torch.Generator().manual_seed(step.index)  # the user's random numbers stay theirs
        shared = sizes if sum(sizes.values()) <= elements else _shared_out(sizes, elements, generator)
        return _drawn(step, shared, set(in_turn(step)), generator)

    return draw


def in_turn(step: Step) -> list[str]:
    """Return the parameters whose turn it is to have histograms of their own: in time all, whatever the schedule."""
    names = list(step.per_sample_gradients.shapes)
    first, count = int(step.index * _GOLDEN_RATIO % 1 * len(names)), min(TURNS, len(names))
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


def _drawn(step: Step, shared: Mapping[str, int], alone: Set[str], generator: torch.Generator) -> SampledElements:
    """Return so many elements of each parameter, and more of those in ``alone``."""
    layers = step.per_sample_gradients
    counts = {name: count + LEAST * (name in alone) for name, count in shared.items() if count or name in alone}
    names = list(counts)
    if not names or not layers.batch_size:
        raise NotMeasured("no per-sample gradient was seen on this step")
    every = max(1, layers.batch_size // SAMPLES)
    first = int(torch.randint(every, (), generator=generator)) if every > 1 else 0
    gradients, parameters = {}, {}
    for name, layer in layers.of(names):
        indices = layer.choose(counts[name], generator)
        weights = step.parameters[name].detach().reshape(-1)
        gradients[name] = layer.elements(indices, first, every)
        parameters[name] = weights.index_select(0, indices if weights.is_cpu else indices.to(weights.device))
    like = gradients[names[0]]
    return SampledElements(
        names,
        [layers.shapes[name].numel() for name in names],
        [shared[name] / sum(shared.values()) for name in names],
        [gradients[name].shape[1] for name in names],
        sum(shape.numel() for shape in layers.shapes.values()),
        _joined([gradients[name] for name in names], like).mul_(layers.batch_size),
        _joined([parameters[name] for name in names], like),
    )


def all_elements(step: Step) -> Iterator[tuple[str, SampledElements]]:
    """Yield every element of every parameter with the parameter's name, some samples at a time: slow, and exact."""
    layers = step.per_sample_gradients
    for name, layer in layers:
        size = layer.shape.numel()
        weights = step.parameters[name].detach().reshape(-1).to(torch.float32)
        for part in layer.gradients():
            gradients = part.reshape(len(part), -1).to(torch.float32) * layers.batch_size
            yield name, SampledElements([name], [size], [1.0], [size], size, gradients, weights)


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the parts side by side in float32, a tensor of its own."""
    return torch.cat([part.to(like.device, torch.float32) for part in parts], -1)
