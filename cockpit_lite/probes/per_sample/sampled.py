"""A random sample of the elements of all per-sample gradients: what histograms are made of.

The N x D elements of a batch are too many to look at, and most of them say the same. Of every parameter some elements are
drawn, each as likely as any other of it, and looked at in all samples. Every parameter gets the same few, for a histogram of
its own, and the rest are shared out by size, where they serve the histogram of the whole model best. That one weights the
parameters by their sizes, so in the mean over many draws both are exactly those of all elements. New ones are drawn at every
step, so that what one draw misses is not missed for good. Of a large batch every so manieth sample is looked at, beginning
with any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.step import Step

#: Elements that are drawn of every parameter, however small beside the others.
LEAST = 32
#: A batch of twice as many samples and more is not looked at whole.
SAMPLES = 32


@dataclass(frozen=True)
class SampledElements:
    """K elements of P parameters, in the order of the parameters.

    Attributes:
        names: Names of the parameters.
        sizes: How many elements each parameter has.
        draws: How many were drawn of each.
        owners: To which parameter an element belongs, integers, shape (K,).
        gradients: ``g_nj = N c_nj`` of n of the samples, in float32, shape (n, K).
        parameters: ``theta_j``, in float32, shape (K,).
    """

    names: list[str]
    sizes: list[int]
    draws: list[int]
    owners: Tensor
    gradients: Tensor
    parameters: Tensor

    @property
    def complete(self) -> list[bool]:
        """Return for every parameter whether all of its elements are there."""
        return [size == draws for size, draws in zip(self.sizes, self.draws, strict=True)]


@lru_cache(maxsize=8)
def sampler(elements: int) -> Callable[[Step], SampledElements]:
    """Return the function that draws, for ``step.once``: instruments that ask for as many elements share them.

    Args:
        elements: How many are shared out by size, beside :data:`LEAST` of every parameter.
    """

    def draw(step: Step) -> SampledElements:
        layers = step.per_sample_gradients
        total = sum(shape.numel() for shape in layers.shapes.values())
        if not total or not layers.batch_size:
            raise NotMeasured("no per-sample gradient was seen on this step")
        generator = torch.Generator().manual_seed(step.index)  # the user's random numbers stay theirs
        every = max(1, layers.batch_size // SAMPLES)
        first = int(torch.randint(every, (), generator=generator))
        names, sizes, draws, gradients, parameters = [], [], [], [], []
        for name, layer in layers:
            size = layer.shape.numel()
            indices = layer.choose(LEAST + round(elements * size / total), generator)
            weights = step.parameters[name].detach().reshape(-1)
            names.append(name)
            sizes.append(size)
            draws.append(len(indices))
            gradients.append(layer.elements(indices, first, every).mul_(layers.batch_size).to(torch.float32))
            parameters.append(weights.index_select(0, indices.to(weights.device)).to(torch.float32))
        owners = torch.repeat_interleave(torch.tensor(draws))
        found = [_joined(parts, gradients[0]) for parts in ([owners], gradients, parameters)]
        return SampledElements(names, sizes, draws, *found)

    return draw


def all_elements(step: Step) -> Iterator[tuple[str, SampledElements]]:
    """Yield every element of every parameter with the parameter's name, some samples at a time: slow, and exact."""
    layers = step.per_sample_gradients
    for name, layer in layers:
        size = layer.shape.numel()
        weights = step.parameters[name].detach().reshape(-1).to(torch.float32)
        owners = torch.zeros(size, dtype=torch.long, device=weights.device)
        for part in layer.gradients():
            gradients = part.reshape(len(part), -1).to(torch.float32) * layers.batch_size
            yield name, SampledElements([name], [size], [size], owners, gradients, weights)


def _joined(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    return torch.cat([part.to(like.device) for part in parts], -1)
