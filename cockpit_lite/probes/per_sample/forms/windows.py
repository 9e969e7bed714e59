"""Outer products of a convolution: every position sees a window of the input, and neighbouring windows overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.forms.chunks import Chunks
from cockpit_lite.probes.per_sample.forms.form import Measured, RankOne, accurate
from cockpit_lite.probes.per_sample.forms.outer_products import FEW_POSITIONS, OuterProducts

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
#: Multiplications that take as long as adding one element to another in memory, roughly.
ADDITION = 8
#: Multiplications that take as long as it takes to start the operations of one place.
STARTING = 1_000_000
#: Up to so many pairs of pixels and positions a kernel of one channel is a matrix: a quarter of a megabyte in float32.
FEW_PAIRS = 1 << 16
#: Matrices of fewer columns are multiplied slowly.
WIDE = 64


class Windows(Chunks):
    """Outer products of output gradients and windows of the input, which together are many times as large as the input.

    The windows are seldom written out. Where the norms suffice, the Gram matrix of the windows is a sum of shifted Gram matrices
    of the pixels, and inner products with a direction are what a convolution by it answers. Otherwise the gradient falls into
    one part for every place under the kernel, each a sum of outer products by itself: of the pixels that lie at this place and
    the output gradients. If the places along the first axis only are taken apart, these pixels are a view of the image.

    Args:
        inputs: Shape (N, C, *).
        deltas: Gradients at the outputs, shape (N, O, *).
        stride: One number an axis of the image.
        dilation: One number an axis of the image.
        groups: Number of groups of channels.
        shape: Shape (O, C / groups, *) of the parameter.
        padding: Zeros before and behind the image, two numbers an axis; none if left out.
    """

    def __init__(
        self,
        inputs: Tensor,
        deltas: Tensor,
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        shape: torch.Size,
        padding: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        self.inputs, self.answers = accurate(inputs), accurate(deltas)
        if self.inputs.dtype != self.answers.dtype:  # e.g. a float64 loss on a float32 layer
            self.inputs, self.answers = self.inputs.double(), self.answers.double()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.kernel = shape[2:]
        self.padding = [(0, 0)] * len(self.kernel) if padding is None else padding
        positions, fan_in = deltas.shape[2:].numel(), inputs.shape[1] * self.kernel.numel()
        # no method of its own: in a cycle of references the images would outlive the form
        make = partial(_some, self.inputs, self.answers, self.padding, stride, dilation, groups, shape)
        super().__init__(make, len(inputs), base.CHUNK // max(1, positions * fan_in), shape)

    def measure(self, directions: Sequence[Tensor] = (), along: RankOne | None = None, squares: bool = False) -> Measured:
        """By the Gram matrices of pixels and deltas, if that is the shortest way; otherwise place by place under the kernel."""
        found = None if along is None else self._convolved_along(along)
        if squares or not self._pixels_are_few():
            return self._by_places(directions, squares)._replace(along=found)
        products = tuple(self._convolved(direction, self.inputs, self.answers) for direction in directions)
        return Measured(self._norms_by_pixels(), products, found)

    def some_products(self, directions: Sequence[Tensor], every: int) -> tuple[Tensor, ...]:
        """What a convolution would answer to these samples."""
        images, answers = self.inputs[::every], self.answers[::every]
        return tuple(self._convolved(direction, images, answers) for direction in directions)

    def column(self, place: int, of: slice) -> Tensor:
        """Return what the windows of some samples hold at one place, shape (n, positions); without groups.

        Args:
            place: Counts the elements of a window as the parameter does: channel, then row and column under the kernel.
            of: Which samples.
        """
        chosen: list[slice] = []
        for width, step, gap, count in reversed(
            [*zip(self.kernel, self.stride, self.dilation, self.answers.shape[2:], strict=True)]
        ):
            place, offset = divmod(place, width)
            chosen.insert(0, slice(offset * gap, offset * gap + (count - 1) * step + 1, step))
        channel = _padded(self.inputs[of, place], self.padding)
        return channel[(slice(None), *chosen)].flatten(1)

    def _pixels_are_few(self) -> bool:
        pixels, positions = self.inputs.shape[2:].numel(), self.answers.shape[2:].numel()
        channels, fan_out = self.inputs.shape[1] // self.groups, self.shape[0] // self.groups
        fan_in = channels * self.kernel.numel()
        sizes, additions = list(self.inputs.shape[2:]), 0
        for axis, width in enumerate(self.kernel):  # one axis after the other
            sizes[axis] = self.answers.shape[2 + axis]
            additions += width * prod(sizes) ** 2
        starting = STARTING // max(1, self.batch_size)
        by_pixels = pixels**2 * channels + positions**2 * fan_out + ADDITION * additions + 2 * starting
        writing = ADDITION * positions * fan_in // self.kernel[0]  # what lies at the places of the other axes
        by_places = writing + min(positions * fan_in * fan_out, positions**2 * (fan_in + fan_out))
        return by_pixels < by_places + starting * prod(self.kernel[: self._axes_apart()])

    # place by place ---------------------------------------------------------------------------------------------------

    def _by_places(self, directions: Sequence[Tensor], squares: bool) -> Measured:
        apart = self._axes_apart()
        towards = [
            _places_first(direction.detach().to(self.answers.dtype).reshape(self.shape), apart).contiguous()
            for direction in directions
        ]
        total = self.answers.new_empty(self.shape) if squares else None
        at_places = None if total is None else _places_first(total, apart)
        found: list[Measured] = []
        seen = self.inputs.shape[2 : 2 + apart].numel() * self.answers.shape[2 + apart :].numel()
        written = self.inputs.shape[1] * self.kernel[apart:].numel() * seen
        samples = max(1, (2 if apart else 1) * base.CHUNK // max(1, written))
        # one Gram matrix of all windows instead of a small one for every place
        norms_apart = squares and self.answers.shape[2:].numel() <= FEW_POSITIONS and self._pixels_are_few()
        for images, answers in zip(self.inputs.split(samples), self.answers.split(samples), strict=True):
            norms = answers.new_zeros(len(images))
            products = [torch.zeros_like(norms) for _ in directions]
            for place, form in self._places(images, answers, apart):
                there = [direction[place] for direction in towards]
                squared: Tensor | None
                if norms_apart:
                    along_each, squared = form.but_norms(there)
                else:
                    part, along_each, _, squared = form.measure(there, None, squares)
                    norms += part
                for known, more in zip(products, along_each, strict=True):
                    known += more
                if at_places is not None and squared is not None:
                    known = at_places[place]
                    more = squared.view(known.shape)
                    known.add_(more) if found else known.copy_(more)
            found.append(Measured(norms, tuple(products)))
        return Measured(
            self._norms_by_pixels() if norms_apart else torch.cat([measured.norms for measured in found]),
            tuple(torch.cat(parts) for parts in zip(*(measured.products for measured in found), strict=True)),
            None,
            total,
        )

    def _axes_apart(self) -> int:
        """Return along how many axes the places under the kernel are taken apart."""
        if self.answers.shape[2:].numel() <= FEW_POSITIONS:  # most of a window would be padding
            return len(self.kernel)
        return int(self.stride[0] == 1 and self.shape[1] * self.kernel[1:].numel() >= WIDE)

    def _places(self, images: Tensor, answers: Tensor, apart: int) -> Iterator[tuple[tuple[int, ...], OuterProducts]]:
        """Yield the places under the kernel along the first ``apart`` axes, each with its part of the gradients.

        Only positions at which the place lies within the image are in it: the others see padding.
        """
        shape = torch.Size((self.shape[0], self.shape[1] * self.kernel[apart:].numel()))
        pixels = self._unfolded(images, apart)
        deltas = answers.unflatten(1, (self.groups, -1))
        single = apart == len(self.kernel)
        if single:  # single pixels are taken of them: with the channels last that is what matrix products like
            pixels, deltas = (values.movedim(2, -1).contiguous() for values in (pixels, deltas))
        for place in product(*map(range, self.kernel[:apart])):
            reaches = [_reaches(self._geometry)[axis][offset] for axis, offset in enumerate(place)]
            seen, seeing = [pixel for pixel, _ in reaches], [position for _, position in reaches]
            before = (slice(None),) * (2 if single else 3)
            inputs, outputs = pixels[(*before, *seen)], deltas[(*before, *seeing)]
            if single:
                inputs, outputs = inputs.flatten(2, -2), outputs.flatten(2, -2)
            else:
                inputs, outputs = inputs.flatten(3).transpose(2, 3), outputs.flatten(3).transpose(2, 3)
            if self.groups == 1 and inputs.shape[2] == 1:
                yield place, OuterProducts(inputs[:, 0, 0], outputs[:, 0, 0], shape)
            else:
                yield place, OuterProducts(inputs, outputs, shape)

    @cached_property
    def _geometry(self) -> _Geometry:
        padding = tuple((before, behind) for before, behind in self.padding)
        sizes = (self.inputs.shape[2:], self.answers.shape[2:], self.kernel)
        return _Geometry(*sizes, tuple(self.stride), tuple(self.dilation), padding)

    def _unfolded(self, images: Tensor, apart: int) -> Tensor:
        """Return (n, groups, C / groups * places, *): beside the channels are the places along the other axes of the kernel."""
        others = len(self.kernel) - apart
        windows = _padded(images, [(0, 0)] * apart + list(self.padding[apart:]))
        for axis in range(apart, len(self.kernel)):
            size, step, gap = self.kernel[axis], self.stride[axis], self.dilation[axis]
            windows = windows.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
            windows = windows.narrow(2 + axis, 0, self.answers.shape[2 + axis])
        order = (0, 1, *range(2 + apart + others, 2 + apart + 2 * others), *range(2, 2 + apart + others))
        positions = [self.answers.shape[2 + apart :].numel()] * bool(others)
        return windows.permute(order).reshape(len(images), self.groups, -1, *images.shape[2 : 2 + apart], *positions)

    # by pixels --------------------------------------------------------------------------------------------------------

    def _norms_by_pixels(self) -> Tensor:
        samples = max(1, base.CHUNK // (self.groups * self.inputs.shape[2:].numel() ** 2))
        return torch.cat(
            [
                self._window_gram(images).mul_(_gram(answers, self.groups)).sum((1, 2)).reshape(-1, self.groups).sum(1)
                for images, answers in zip(self.inputs.split(samples), self.answers.split(samples), strict=True)
            ]
        ).clamp_(min=0)

    def _window_gram(self, images: Tensor) -> Tensor:
        """Return the inner products of the windows of every image, shape (n * groups, positions, positions)."""
        size, positions = images.shape[2:], self.answers.shape[2:]
        gram = _gram(images, self.groups).reshape(-1, *size, *size)
        for axis in range(len(self.kernel)):
            both = (1 + axis, 1 + len(size) + axis)  # the axis of one pixel and that of the other move together
            shape = list(gram.shape)
            shape[both[0]] = shape[both[1]] = positions[axis]
            shifted = gram.new_zeros(shape)
            for pixels, seeing in _reaches(self._geometry)[axis]:
                _every(shifted, both, seeing).add_(_every(gram, both, pixels))
            gram = shifted
        return gram.reshape(-1, positions.numel(), positions.numel())

    def _convolved(self, direction: Tensor, images: Tensor, answers: Tensor) -> Tensor:
        kernel = direction.detach().to(images.dtype).reshape(self.shape)
        return self._convolution(images, kernel, self.groups).mul_(answers).flatten(1).sum(1)

    def _convolved_along(self, along: RankOne) -> Tensor:
        left, right, factors = along
        if factors is None:
            return self._convolved(torch.outer(left, right), self.inputs, self.answers)
        # what is along the channels is one picture, which is shifted under the kernel; the groups share what stands right
        channels, places = factors
        pixels, positions = self.inputs.shape[2:].numel(), self.answers.shape[2:].numel()
        images = self.inputs.reshape(-1, self.shape[1], pixels)
        picture = torch.matmul(channels.to(images.dtype), images)
        if pixels * positions <= FEW_PAIRS:
            answers = picture @ _shifts(self._geometry, places, picture.dtype, picture.device)
        else:
            answers = _shifted(picture, self._geometry, places)
        return self._answered(left, answers)

    def _answered(self, left: Tensor, answers: Tensor) -> Tensor:
        """Return the inner products with what a convolution along ``left right'`` answers, a number a group and position."""
        positions = self.answers.shape[2:]
        deltas = self.answers.reshape(self.batch_size, self.groups, -1, positions.numel())
        towards = left.to(deltas.dtype).reshape(self.groups, -1)
        towards = torch.matmul(towards[0], deltas[:, 0]) if self.groups == 1 else (towards[:, None] @ deltas)[:, :, 0]
        return answers.reshape(towards.shape).mul_(towards).flatten(1).sum(1)

    def _convolution(self, images: Tensor, kernel: Tensor, groups: int) -> Tensor:
        padding = [before for before, _ in self.padding]
        if any(before != behind for before, behind in self.padding):
            images, padding = _padded(images, self.padding), [0] * len(padding)
        return _CONVOLUTIONS[len(padding)](images, kernel, None, tuple(self.stride), tuple(padding), tuple(self.dilation), groups)


class _Geometry(NamedTuple):
    """How a kernel slides over an image; one number, or two of zeros before and behind it, an axis."""

    pixels: torch.Size
    positions: torch.Size
    kernel: torch.Size
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@lru_cache(maxsize=256)
def _reaches(of: _Geometry) -> list[list[tuple[slice, slice]]]:
    """By axis and place under the kernel: the pixels that lie there, and the positions that see them there."""
    return [[_reach(of, axis, offset) for offset in range(width)] for axis, width in enumerate(of.kernel)]


def _reach(of: _Geometry, axis: int, offset: int) -> tuple[slice, slice]:
    step, first = of.stride[axis], offset * of.dilation[axis] - of.padding[axis][0]
    low = max(0, -(first // step))
    high = min(of.positions[axis], (of.pixels[axis] - 1 - first) // step + 1)
    if high <= low:
        return slice(0, 0), slice(0, 0)
    return slice(low * step + first, (high - 1) * step + first + 1, step), slice(low, high)


def _shifted(pictures: Tensor, of: _Geometry, places: Sequence[float]) -> Tensor:
    """Return what a kernel of these numbers answers to pictures of one channel, shape (n, positions) from (n, pixels)."""
    pictures = pictures.unflatten(1, of.pixels)
    answers = pictures.new_zeros(len(pictures), *of.positions)
    for place, reaches in zip(places, product(*_reaches(of)), strict=True):
        seen, seeing = zip(*reaches, strict=True)
        answers[(..., *seeing)].add_(pictures[(..., *seen)], alpha=place)
    return answers.flatten(1)


@lru_cache(maxsize=32)
def _shifts(of: _Geometry, places: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the same as a matrix, which takes one operation: what is answered to every pixel alone."""
    return _shifted(torch.eye(of.pixels.numel(), dtype=dtype, device=device), of, places)


def _some(
    inputs: Tensor,
    answers: Tensor,
    padding: Sequence[tuple[int, int]],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    shape: torch.Size,
    samples: slice,
) -> OuterProducts:
    """Write the windows of some samples out."""
    windows = patches(_padded(inputs[samples], padding), shape[2:], stride, dilation, groups)
    return OuterProducts(windows, by_group(answers[samples], groups), shape)


def _padded(images: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    if not any(before or behind for before, behind in padding):
        return images
    return functional.pad(images, [size for both in reversed(padding) for size in both])


def _places_first(parameter: Tensor, apart: int) -> Tensor:
    """Return (kernel axes that are taken apart, O, C, other kernel axes) from (O, C, kernel axes)."""
    return parameter.movedim(tuple(range(2, 2 + apart)), tuple(range(apart)))


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
