"""Which rows of a module's output belong to which sample.

Shapes do not say it: rows may be samples, or positions of samples in either order, or the tokens that a router sent to an
expert, and a table of positions that happens to have as many rows as the batch has samples looks like a batch. Nor does the sum
of the contributions, which is right however they are shared out. So the graph is asked: it is linear going backward, and if the
output of sample n is weighted by w_n, then the gradient at every row of sample n is weighted by w_n, whatever lies between. Two
passes with known weights give the owner of every row, and show the rows that have none because samples meet there.

The passes cost about one backward each; the probe makes them when a structure of calls is seen for the first time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from cockpit_lite.probes.per_sample.calls import Call, first_tensor

#: How many different weights the precision of a backward pass can tell apart; larger batches take more passes.
CODES = {torch.float64: 1024, torch.float32: 256}
HALF_PRECISION_CODES = 4
#: Greatest part of a row's gradient that may not follow the weight of its owner.
LEFT_OVER = {torch.float64: 1e-6, torch.float32: 2e-3}
HALF_PRECISION_LEFT_OVER = 5e-2


@dataclass(frozen=True)
class Layout:
    """Where the samples are in the output (and input) of a call.

    Attributes:
        axis: The axis that holds the rows. ``FLAT``: all leading axes together, row-major.
        owners: Sample of every row; ``None``: row n is sample n.
        reason: If not empty, the call cannot be split into samples, because ...
        regular: Whether the owners follow from the shapes, so that another step with the same shapes has the same.
    """

    axis: int = 0
    owners: Tensor | None = None
    reason: str = ""
    regular: bool = True


FLAT = -1


def rows(tensor: Tensor, axis: int, trailing: int = 1) -> Tensor:
    """Return the tensor with the rows on axis 0; ``trailing`` axes are not leading ones for ``FLAT``."""
    if axis == FLAT:
        return tensor.flatten(0, tensor.dim() - trailing - 1)
    return tensor.movedim(axis, 0)


def _flat(tensor: Tensor) -> Tensor:
    """Return one row for each of the first axis."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]


class Passes:
    """The backward passes of one forward.

    Args:
        outputs: Outputs of the forward with their shape and the axis that is taken to hold the samples.
        edges: Where the gradient is wanted.
        like: A tensor with the device and the precision of the outputs.
        precision: The lowest of all that is on the way: under autocast outputs may be converted back to a higher one.
    """

    def __init__(
        self,
        outputs: Sequence[tuple[Tensor | GradientEdge, torch.Size, int]],
        edges: Sequence[GradientEdge],
        like: Tensor,
        precision: torch.dtype,
    ) -> None:
        self.batch_size = outputs[0][1][outputs[0][2]]
        most = CODES.get(precision, HALF_PRECISION_CODES)
        self.left_over = LEFT_OVER.get(precision, HALF_PRECISION_LEFT_OVER)
        generator = torch.Generator().manual_seed(0)
        # in random order, so that the weights agree with no other order of the rows by chance
        codes = torch.randperm(self.batch_size, generator=generator)
        self.sample_of_code = torch.argsort(codes).to(like.device)
        digits = 1
        while most**digits < self.batch_size:
            digits += 1
        # as far apart as they can be, so that a mixture of samples is far from any weight
        self.base = min(base for base in range(1, most + 1) if base**digits >= self.batch_size)
        self.precision = 0.2 / most
        weights = [1 + (codes // self.base**digit) % self.base / self.base for digit in range(digits)]
        # a mixture may have the weight of a sample by chance, but not a second time
        control = 1 + torch.randperm(self.batch_size, generator=generator) / self.batch_size
        self.control = control.to(like.device).double()
        cotangents: list[list[Tensor]] = [[] for _ in range(2 + digits)]
        for _, shape, axis in outputs:
            random = torch.randn(shape, generator=generator)
            plain = (random.sign() * (random.abs() + 0.5)).to(like.device, like.dtype)
            alone = [1] * len(shape)
            alone[axis] = self.batch_size
            for number, weight in enumerate([torch.ones(self.batch_size), *weights, control]):
                cotangents[number].append(plain * weight.reshape(alone).to(like.device, like.dtype))
        anchors: Any = [output for output, _, _ in outputs]  # tensors and edges: torch takes both, its annotation does not
        self.deltas = [
            torch.autograd.grad(anchors, list(edges), cotangent, retain_graph=True, allow_unused=True) for cotangent in cotangents
        ]

    @cached_property
    def rounding(self) -> float:
        """Gradients up to this may be nothing but rounding errors, as those of keys where there is only one to attend to."""
        limits = [float(delta.abs().max()) * torch.finfo(delta.dtype).eps for delta in self.deltas[0] if delta is not None]
        return 16 * max((limit for limit in limits if isfinite(limit)), default=0.0)

    def layout(self, position: int, axes: Sequence[int], trailing: int) -> Layout | None:
        """Return the layout of the call at ``position`` on the first axis that fits; None if next to nothing arrives.

        Args:
            position: Which edge.
            axes: Axes to try.
            trailing: Axes of the tensor that are no leading ones, for ``FLAT``.
        """
        found = [deltas[position] for deltas in self.deltas]
        if found[0] is None or not found[0].dim() or not bool(torch.isfinite(found[0]).all()):
            return None
        if not bool(found[0].any()):
            return None
        for axis in axes:
            if axis >= found[0].dim():
                continue
            layout = self._decode([_flat(rows(delta, axis, trailing)) for delta in found if delta is not None], axis)
            if layout is not None:
                return layout
        if float(found[0].abs().max()) <= self.rounding:
            return None
        return Layout(reason="samples meet")

    def agreement(self, position: int) -> float | None:
        """Return how well the weights of the rows on axis 0 correlate with those of the samples; None if it cannot be said.

        For models in which samples meet a little everywhere, as in batch normalisation.
        """
        plain, weighted = self.deltas[0][position], self.deltas[1][position]
        if plain is None or weighted is None or plain.shape[0] != self.batch_size or self.batch_size < 4:
            return None
        plain, weighted = _flat(plain).double(), _flat(weighted).double()
        norm = plain.square().sum(1)
        alive = norm > 1e-10 * norm.max()
        if int(alive.sum()) < 4:
            return None
        ratio = ((plain * weighted).sum(1) / norm)[alive]
        code = torch.argsort(self.sample_of_code) % self.base
        expected = 1 + code[alive].double() / self.base
        return float(torch.corrcoef(torch.stack([ratio, expected]))[0, 1])

    def _decode(self, found: Sequence[Tensor], axis: int) -> Layout | None:
        plain = found[0].double()
        norm = plain.square().sum(1)
        alive = norm > 1e-20 * norm.max()
        code = torch.zeros(len(norm), dtype=torch.long, device=norm.device)
        ratios = []
        for weighted in found[1:]:
            weighted = weighted.double()
            ratio = (plain * weighted).sum(1) / norm.clamp(min=torch.finfo(torch.float64).tiny)
            left_over = (weighted - ratio[:, None] * plain).square().sum(1) > self.left_over**2 * norm
            if bool((left_over & alive).any()):
                return None
            ratios.append(ratio)
        for digit, ratio in enumerate(ratios[:-1]):
            value = ((ratio - 1) * self.base).round()
            if bool((((ratio - 1 - value / self.base).abs() > self.precision) & alive).any()):
                return None
            code += value.long().clamp(0, self.base - 1) * self.base**digit
        if bool((code[alive] >= self.batch_size).any()):
            return None
        owners = self.sample_of_code[code.clamp(max=self.batch_size - 1)]
        if bool((((ratios[-1] - self.control[owners]).abs() > self.precision) & alive).any()):
            return None
        count, samples = len(owners), torch.arange(self.batch_size, device=owners.device)
        if count % self.batch_size == 0:  # rows that get no gradient have no owner: they follow the others
            each = count // self.batch_size
            for pattern in (samples.repeat_interleave(each), samples.repeat(each)):
                if bool((owners == pattern)[alive].all()):
                    return Layout(axis, None if each == 1 else pattern)
        return Layout(axis, owners.where(alive, torch.zeros_like(owners)), regular=False)


def by_shape(call: Call, batch_size: int, axes: Sequence[int]) -> Layout:
    """Return the layout that the shapes suggest: for where the graph cannot be asked."""
    output, inputs = call.outputs[0], first_tensor(call.args, call.kwargs)
    for axis in axes:
        if axis == FLAT or axis >= output.dim():
            continue
        size = output.shape[axis]
        fits = size == batch_size or (axis == 0 and size > 0 and size % batch_size == 0)
        if fits and (
            isinstance(call.module, nn.EmbeddingBag) or (inputs is not None and inputs.shape[axis : axis + 1] == (size,))
        ):
            samples = torch.arange(batch_size, device=output.device)
            return Layout(axis, None if size == batch_size else samples.repeat_interleave(size // batch_size))
    shapes = [tuple(tensor.shape) for tensor in ([] if inputs is None else [inputs]) + [output]]
    return Layout(reason=f"input and output do not carry the batch: shapes {shapes}, batch size {batch_size}")


def normalises_over_batch(module: nn.Module) -> bool:
    """Whether the module is a batch normalisation that uses the statistics of the batch."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
