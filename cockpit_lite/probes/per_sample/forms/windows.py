"""Outer products of a convolution: every position sees a window of the input, and neighbouring windows overlap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.forms.chunks import Chunks
from cockpit_lite.probes.per_sample.forms.form import Measured, RankOne, accurate
from cockpit_lite.probes.per_sample.forms.outer_products import OuterProducts

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
#: Multiplications that take as long as adding one element to another in memory, roughly.
ADDITION = 8


class Windows(Chunks):
    """Outer products of output gradients and windows of the input, which together are many times as large as the input.

    Where the gradients themselves are not needed, the windows are not written out either. The Gram matrix of the windows is a sum
    of shifted Gram matrices of the pixels, and inner products with a direction are what a convolution by it answers.

    Args:
        inputs: Shape (N, C, *), with the padding written out.
        deltas: Gradients at the outputs, shape (N, O, *).
        stride: One number an axis of the image.
        dilation: One number an axis of the image.
        groups: Number of groups of channels.
        shape: Shape (O, C / groups, *) of the parameter.
    """

    def __init__(
        self, inputs: Tensor, deltas: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int, shape: torch.Size
    ) -> None:
        self.images, self.answers = accurate(inputs), accurate(deltas)
        if self.images.dtype != self.answers.dtype:  # e.g. a float64 loss on a float32 layer
            self.images, self.answers = self.images.double(), self.answers.double()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.kernel = shape[2:]
        positions, fan_in = deltas.shape[2:].numel(), inputs.shape[1] * self.kernel.numel()
        # no method of its own: in a cycle of references the images would outlive the form
        make = partial(_some, self.images, self.answers, stride, dilation, groups, shape)
        super().__init__(make, len(inputs), base.CHUNK // max(1, positions * fan_in), shape)

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """By the Gram matrices of pixels and deltas, if that is the shortest way; otherwise by windows, a chunk at a time."""
        if squares or not self._pixels_are_few():
            return super().measure(directions, along, squares)
        return Measured(
            self._norms_by_pixels(),
            tuple(self._convolved(direction) for direction in directions),
            None if along is None else self._convolved_along(*along),
        )

    def column(self, place: int, of: slice) -> Tensor:
        """Return what the windows of some samples hold at one place, shape (n, positions); without groups.

        Args:
            place: Counts the elements of a window as the parameter does: channel, then row and column under the kernel.
            of: Which samples.
        """
        chosen: list[slice] = []
        axes = zip(self.kernel, self.stride, self.dilation, self.answers.shape[2:], strict=True)
        for width, step, gap, count in reversed(list(axes)):
            place, offset = divmod(place, width)
            chosen.insert(0, slice(offset * gap, offset * gap + (count - 1) * step + 1, step))
        return self.images[of, place][(slice(None), *chosen)].flatten(1)

    def _pixels_are_few(self) -> bool:
        pixels, positions = self.images.shape[2:].numel(), self.answers.shape[2:].numel()
        channels, fan_out = self.images.shape[1] // self.groups, self.shape[0] // self.groups
        fan_in = channels * self.kernel.numel()
        additions = sum(self.kernel) * max(pixels, positions) ** 2
        by_pixels = pixels**2 * channels + positions**2 * fan_out + ADDITION * additions
        writing = ADDITION * positions * fan_in  # the windows out
        return by_pixels < writing + min(positions * fan_in * fan_out, positions**2 * (fan_in + fan_out))

    def _norms_by_pixels(self) -> Tensor:
        samples = max(1, base.CHUNK // (self.groups * self.images.shape[2:].numel() ** 2))
        return torch.cat(
            [
                self._window_gram(images).mul_(_gram(answers, self.groups)).sum((1, 2)).reshape(-1, self.groups).sum(1)
                for images, answers in zip(self.images.split(samples), self.answers.split(samples), strict=True)
            ]
        ).clamp_(min=0)

    def _window_gram(self, images: Tensor) -> Tensor:
        """Return the inner products of the windows of every image, shape (n * groups, positions, positions)."""
        size, positions = images.shape[2:], self.answers.shape[2:]
        gram = _gram(images, self.groups).reshape(-1, *size, *size)
        for axis, (width, step, gap) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            reach = (positions[axis] - 1) * step + 1
            both = (1 + axis, 1 + len(size) + axis)  # the axis of one pixel and that of the other move together
            shifted = [_every(gram, both, slice(offset * gap, offset * gap + reach, step)) for offset in range(width)]
            gram = shifted[0].contiguous() if width == 1 else shifted[0] + shifted[1]
            for more in shifted[2:]:
                gram += more
        return gram.reshape(-1, positions.numel(), positions.numel())

    def _convolved(self, direction: Tensor) -> Tensor:
        convolution = _CONVOLUTIONS[len(self.kernel)]
        kernel = direction.detach().to(self.images.dtype).reshape(self.shape)
        answers = convolution(self.images, kernel, None, tuple(self.stride), 0, tuple(self.dilation), self.groups)
        return answers.mul_(self.answers).flatten(1).sum(1)

    def _convolved_along(self, left: Tensor, right: Tensor) -> Tensor:
        convolution = _CONVOLUTIONS[len(self.kernel)]
        apart = self.images.reshape(-1, self.shape[1], *self.images.shape[2:])  # the groups share what stands right
        kernel = right.to(apart.dtype).reshape(1, *self.shape[1:])
        answers = convolution(apart, kernel, None, tuple(self.stride), 0, tuple(self.dilation))
        deltas = self.answers.flatten(2).unflatten(1, (self.groups, -1))
        towards = left.to(deltas.dtype).reshape(self.groups, 1, -1) @ deltas
        return (towards.flatten(1) * answers.reshape(self.batch_size, -1)).sum(1)


def _some(
    images: Tensor,
    answers: Tensor,
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shape: torch.Size,
    samples: slice,
) -> OuterProducts:
    """Write the windows of some samples out."""
    windows = patches(images[samples], shape[2:], stride, dilation, groups)
    return OuterProducts(windows, by_group(answers[samples], groups), shape)


def _gram(values: Tensor, groups: int) -> Tensor:
    """Return the inner products over the channels of a group between all pixels, shape (N * groups, pixels, pixels)."""
    rows = values.reshape(values.shape[0] * groups, values.shape[1] // groups, -1)
    return rows.transpose(1, 2) @ rows


def _every(gram: Tensor, axes: Sequence[int], chosen: slice) -> Tensor:
    return gram[tuple(chosen if axis in axes else slice(None) for axis in range(gram.dim()))]


def patches(inputs: Tensor, kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int], groups: int) -> Tensor:
    """Return the patches under the kernel, shape (N, groups, positions, channels of the group * kernel elements)."""
    windows = inputs
    for axis, (size, step, gap) in enumerate(zip(kernel_size, stride, dilation, strict=True), start=2):
        windows = windows.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap]
    batch_size, channels = inputs.shape[:2]
    windows = windows.reshape(batch_size, groups, channels // groups, *windows.shape[2:])
    spatial = len(kernel_size)
    # positions last, where the memory of a row of the image stays together; the matrix products take them transposed
    order = (0, 1, 2, *range(3 + spatial, 3 + 2 * spatial), *range(3, 3 + spatial))
    positions = windows.shape[3 : 3 + spatial].numel()
    return windows.permute(order).reshape(batch_size, groups, -1, positions).transpose(2, 3)


def by_group(deltas: Tensor, groups: int) -> Tensor:
    """Return (N, groups, positions, channels of the group) from (N, channels, *)."""
    return deltas.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)
