"""The per-sample gradients themselves, a layer at a time, for who needs them: histograms, Gram matrices.

Nothing here holds the N gradients of the model, or of a large layer, at once. Iterating makes the factors of one layer after the
other, and what is asked of a layer is computed in chunks::

    for name, layer in step.per_sample_gradients:
        layer.elements(indices)             # (N, k)
        layer.gram()                        # (N, N)
        for chunk in layer.gradients():     # (n, *shape), n as many as fit
            ...
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.per_sample.elements import elements, rows, samples
from cockpit_lite.probes.per_sample.forms import CHUNK, Chunks, Dense, Form, OuterProducts, Sum

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample.survey import Survey


class LayerGradients:
    """The contributions c_n of the samples to the gradient of one parameter; they sum to it.

    Args:
        parts: The form of every micro-batch, in order.
        shape: Shape of the parameter.
        scale: What a gradient scaler multiplied the loss with, or ``None``.

    Attributes:
        batch_size: Number of samples N.
        shape: Shape of the parameter.
    """

    def __init__(self, parts: Sequence[Form], shape: torch.Size, scale: Tensor | None = None) -> None:
        self._parts, self._scale = parts, scale
        self.batch_size, self.shape = sum(part.batch_size for part in parts), shape

    def elements(self, indices: Tensor, first: int = 0, every: int = 1) -> Tensor:
        """Return chosen elements of the samples' gradients, shape (N, k), without building the rest.

        Args:
            indices: Positions in the flattened parameter, integers on the CPU, shape (k,). All pairs of some rows and some
                columns are cheaper than as many single elements.
            first: The first sample to look at, below ``every``.
            every: How many samples to go on each time; the result then has as many rows as samples are met.
        """
        found = []
        for part in self._parts:
            if first < part.batch_size:
                found.append(elements(part, indices, slice(first, part.batch_size, every)))
            first = (first - part.batch_size) % every
        return self._unscaled(found[0] if len(found) == 1 else torch.cat(found))

    def choose(self, count: int, generator: torch.Generator) -> Tensor:
        """Return at most ``count`` positions for :meth:`elements`, each as likely as any other, chosen so that they are cheap.

        Args:
            count: How many; a parameter with no more elements is taken whole.
            generator: Of the CPU.
        """
        total = self.shape.numel()
        if total <= count:
            return torch.arange(total)
        several = (isinstance(p, (Chunks, Sum)) or (isinstance(p, OuterProducts) and p.positions > 1) for p in self._parts)
        if not any(several):
            return torch.randint(total, (count,), generator=generator)
        # A sum over positions: some rows and some columns cost as little as so many single elements.
        height, width = self.shape[0], total // self.shape[0]
        columns = min(width, max(1, isqrt(count), count // height))
        ins = torch.randperm(width, generator=generator)[:columns]
        outs = torch.randperm(height, generator=generator)[: count // columns]
        return (outs[:, None] * width + ins).flatten()

    def gradients(self) -> Iterator[Tensor]:
        """Yield the gradients, some samples at a time and in their order, each of shape (n, *shape)."""
        some = max(1, CHUNK // max(1, self.shape.numel()))
        for part in self._parts:
            for start in range(0, part.batch_size, some):
                yield self._unscaled(samples(part, start, min(start + some, part.batch_size)))

    def gram(self) -> Tensor:
        """Return the inner products between the samples, shape (N, N)."""
        outers = [part for part in self._parts if isinstance(part, OuterProducts) and part.inputs.shape[2] == 1]
        if len(outers) == len(self._parts) and len({part.inputs.shape[1] for part in outers}) == 1:
            # One position: an inner product of outer products is the product of two inner products.
            inputs = torch.cat([part.inputs[:, :, 0] for part in outers]).transpose(0, 1)
            deltas = torch.cat([part.deltas[:, :, 0] for part in outers]).transpose(0, 1)
            gram = ((inputs @ inputs.mT) * (deltas @ deltas.mT)).sum(0)
        else:
            gram = torch.stack([block @ block.T for block in self._blocks()]).sum(0)
        return gram if self._scale is None else gram / self._scale**2

    def _blocks(self) -> Iterator[Tensor]:
        """Yield the gradients a few rows of the parameter at a time, all samples together, each of shape (N, elements)."""
        count = self.shape[0] if self.shape else 1
        width = self.shape.numel() // max(1, count)
        some = max(1, CHUNK // max(1, self.batch_size * width))
        for start in range(0, max(1, count), some):
            stop = min(start + some, count)
            yield torch.cat([rows(part, start, stop).flatten(1) for part in self._parts])

    def _unscaled(self, values: Tensor) -> Tensor:
        return values if self._scale is None else values / self._scale


class PerSampleGradients:
    """What iterates over the layers: yields parameter name and :class:`LayerGradients`. It may be iterated over several times.

    Only parameters that passed the checks of the statistics are there; the others are in ``not_covered`` of those.

    Args:
        survey: The statistics' own.
        parameters: The trainable parameters by name.
        names: The names of the parameters that are covered.
        paused: Keeps the probe from recording what a rule repeats.
        scale: What a gradient scaler multiplied the loss with, or ``None``.

    Attributes:
        batch_size: Number of samples N.
        shapes: Name -> shape of the covered parameters.
    """

    def __init__(
        self,
        survey: Survey,
        parameters: Mapping[str, Tensor],
        names: Sequence[str],
        paused: Callable[[], AbstractContextManager[None]],
        scale: Tensor | None = None,
    ) -> None:
        self._survey, self._parameters, self._paused, self._scale = survey, parameters, paused, scale
        self.batch_size = sum(survey.sizes)
        self.shapes = {name: parameters[name].shape for name in names}

    def __iter__(self) -> Iterator[tuple[str, LayerGradients]]:
        return self.of(self.shapes)

    def of(self, names: Collection[str]) -> Iterator[tuple[str, LayerGradients]]:
        """Yield some of the parameters; the other layers cost nothing."""
        left = set(names)
        forms = self._survey.forms(frozenset(left))
        while left:
            with torch.no_grad(), self._paused():
                name, parts = next(forms, (None, {}))
            if name is None:
                break
            if name in left:
                left.remove(name)
                yield name, self._layer(self._parameters[name], parts)
        if left:
            raise NotMeasured(f"the per-sample gradients of {', '.join(sorted(left)[:3])} could not be made a second time")

    def _layer(self, parameter: Tensor, parts: Mapping[int, Form]) -> LayerGradients:
        known = [parts[number] if number in parts else nothing(parameter, size) for number, size in enumerate(self._survey.sizes)]
        return LayerGradients(known, parameter.shape, self._scale)


def nothing(parameter: Tensor, size: int) -> Dense:
    """Return what a micro-batch contributes to a parameter that it does not use, as a view without memory."""
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return Dense(torch.zeros((), dtype=dtype, device=parameter.device).expand(size, *parameter.shape))
