r"""Some samples of a batch: the model's call on them alone, and how its outputs belong to those of the whole batch.

Nothing is asked of the model but that its samples do not meet. Which axis is the batch's is guessed from sizes and held against
the outputs of the user's own forward pass: a wrong guess, batch normalisation, or any other way in which samples meet gives other
values, and then there is no sub-batch. So are random masks, unless what is drawn for the whole batch is cut to the samples, which
:class:`DrawnForAll` does for dropout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cockpit_lite.errors import NotMeasured, SetupError

#: The share of the batch that random products are taken of where nobody says otherwise: what it adds to their spread is small.
SHARE = 0.25

#: A share of the batch is never less than so many samples.
FEWEST = 4


@dataclass(frozen=True)
class SubBatch:
    """Which samples of a batch.

    Attributes:
        chosen: Their positions, in rising order, on the device of the model.
        batch_size: How many there are in all.
        axis: Of the model's inputs along which the samples lie.
    """

    chosen: Tensor
    batch_size: int
    axis: int

    @property
    def size(self) -> int:
        """How many samples it holds."""
        return len(self.chosen)

    @property
    def factor(self) -> float:
        """What a sum over its samples is multiplied with, to estimate that over the batch."""
        return self.batch_size / self.size

    def cut(self, value: Any) -> Any:
        """Return the inputs of the model with the tensors of the batch's size cut to the samples, in the same nesting."""
        if isinstance(value, Tensor):
            along = value.dim() > self.axis and value.shape[self.axis] == self.batch_size
            return value.index_select(self.axis, self.chosen.to(value.device)) if along else value
        if isinstance(value, dict):
            return {key: self.cut(item) for key, item in value.items()}
        if type(value) in (tuple, list):
            return type(value)(map(self.cut, value))
        return value

    def layouts(self, before: torch.Size, after: torch.Size) -> Iterator[Layout]:
        """Yield how the samples may lie in an output, the likeliest first.

        Args:
            before: Shape of the output for the whole batch.
            after: For these samples.
        """
        for axis in range(min(2, len(before), len(after))):
            each, left = divmod(before[axis], self.batch_size)
            if left or not each or after[axis] != each * self.size:
                continue
            if before[:axis] + before[axis + 1 :] != after[:axis] + after[axis + 1 :]:
                continue
            for inner in (False, True) if each > 1 else (False,):
                yield Layout(self, axis, each, inner)

    def layout_of(self, before: Tensor, after: Tensor, tolerance: float) -> Layout:
        """Return how the samples lie in an output of the model, which tells whether they are told apart at all.

        Args:
            before: The output for the whole batch.
            after: For these samples.
            tolerance: How far they may be apart, relative.

        Raises:
            NotMeasured: if the values are others.
        """
        for layout in self.layouts(before.shape, after.shape):
            with torch.no_grad():
                wanted = layout.take(before).to(after.dtype)
                if not bool(torch.linalg.vector_norm(after - wanted) > tolerance * torch.linalg.vector_norm(wanted)):
                    return layout
        raise NotMeasured("samples meet in the model, or its axes could not be told apart")


def check(instrument: str, size: float | None) -> None:
    """Make sure that ``sub_batch=`` of an instrument makes sense.

    Raises:
        SetupError: if not.
    """
    if size is not None and not (0 < size < 1 or (size >= 2 and size == int(size))):
        raise SetupError(f"{instrument}(sub_batch={size}): a share below 1, a number of samples of at least 2, or None for all.")


@dataclass(frozen=True)
class Layout:
    """Where the samples of a sub-batch lie along one axis of an output.

    Attributes:
        samples: Which ones.
        axis: The axis of the output.
        each: How many entries along it belong to a sample.
        inner: Whether they are interleaved, samples changing fastest.
    """

    samples: SubBatch
    axis: int
    each: int
    inner: bool

    @cached_property
    def positions(self) -> Tensor:
        """Which entries along the axis are those of the sub-batch."""
        shape = (self.each, self.samples.batch_size) if self.inner else (self.samples.batch_size, self.each)
        entries = torch.arange(self.each * self.samples.batch_size, device=self.samples.chosen.device).view(shape)
        return entries.index_select(int(self.inner), self.samples.chosen).flatten()

    def take(self, whole: Tensor) -> Tensor:
        """Cut an output for the whole batch to the samples."""
        return whole.index_select(self.axis, self.positions.to(whole.device))

    def put(self, part: Tensor, like: Tensor) -> Tensor:
        """Return a tensor like the output for the whole batch, zero but for the samples."""
        return torch.zeros_like(like, requires_grad=False).index_copy(self.axis, self.positions.to(like.device), part.to(like))

    def by_sample(self, part: Tensor) -> Tensor:
        """Return the sum over what belongs to each sample of a tensor like the output for the sub-batch."""
        sizes = (self.each, self.samples.size) if self.inner else (self.samples.size, self.each)
        apart = part.unflatten(self.axis, sizes).movedim(self.axis + int(self.inner), 0)
        return apart.flatten(1).sum(1)


class DrawnForAll(TorchDispatchMode):
    """Has dropout draw its masks for the whole batch, as the user's forward pass did, and cuts them to the samples."""

    def __init__(self, samples: SubBatch):
        super().__init__()
        self._samples = samples

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.bernoulli_.float and (layout := self._layout(args[0])) is not None:
            mask = args[0]
            return mask.copy_(layout.take(func(self._whole(mask, layout), *args[1:], **(kwargs or {}))))
        if func is torch.ops.aten.native_dropout.default and (layout := self._layout(args[0])) is not None:
            kept = layout.take(func(self._whole(args[0], layout).fill_(1), *args[1:])[0])
            return args[0] * kept, kept != 0
        return func(*args, **(kwargs or {}))

    def _layout(self, drawn: Tensor) -> Layout | None:
        """Return along which axis of what is drawn the samples lie: one of their number, or a multiple of it."""
        axes = [self._samples.axis, *(axis for axis in (0, 1) if axis != self._samples.axis)]
        for axis in (axis for axis in axes if axis < drawn.dim()):
            if drawn.shape[axis] == self._samples.size:
                return Layout(self._samples, axis, 1, False)
        if (
            drawn.dim() and drawn.shape[0] % self._samples.size == 0
        ):  # heads of attention, or tokens, in one axis with the samples
            return Layout(self._samples, 0, drawn.shape[0] // self._samples.size, False)
        return None

    def _whole(self, drawn: Tensor, layout: Layout) -> Tensor:
        """Return a tensor for the whole batch, its axes in the same order in memory: numbers are drawn in that order."""
        shape = list(drawn.shape)
        shape[layout.axis] = layout.each * self._samples.batch_size
        order = sorted(range(len(shape)), key=drawn.stride, reverse=True)
        whole = drawn.new_empty([shape[axis] for axis in order])
        return whole.permute([order.index(axis) for axis in range(len(shape))])


def drawn_for_all(model: nn.Module, samples: SubBatch) -> AbstractContextManager[Any]:
    """Return the context in which random masks are those of the whole batch; where nothing is drawn it costs nothing."""
    draws = any(_drops(module) for module in model.modules() if module.training)
    return DrawnForAll(samples) if draws else nullcontext()


def _drops(module: nn.Module) -> bool:
    # nn.Dropout has p; attention, recurrent layers and most models of one's own have dropout, a number.
    return any(isinstance(share, float) and share > 0 for share in (getattr(module, "p", 0), getattr(module, "dropout", 0)))


def choose(inputs: Sequence[Tensor], size: float | int, generator: torch.Generator) -> list[SubBatch]:
    """Return the sub-batches to try, for each axis that may be the batch's; none where the batch holds no more samples than that.

    Args:
        inputs: Of the model.
        size: Number of samples, or their share of the batch if below 1, at least :data:`FEWEST`.
        generator: Decides which samples, on the device of the model.
    """
    found: list[SubBatch] = []
    for axis in (0, 1):
        batch_size = next((value.shape[axis] for value in inputs if value.dim() > axis), 0)
        count = max(FEWEST, round(size * batch_size)) if size < 1 else int(size)
        if count >= batch_size:
            break
        chosen = torch.randperm(batch_size, generator=generator, device=generator.device)[:count].sort().values
        found.append(SubBatch(chosen, batch_size, axis))
    return found
