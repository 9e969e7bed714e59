"""Mean and variance of a large tensor in as few passes over it as the device allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Elements that a scalar product is taken over in one go: the rounding errors of a longer one add up.
_PIECE = 2**16
#: Where the squared mean is this many times the variance, the difference of two sums has lost too many digits.
_CANCELLATION = 30.0


@dataclass(frozen=True)
class Moments:
    """Of the outputs of one call: number of elements, their mean and their variance (1/count).

    Scalar tensors on an accelerator. On a CPU plain numbers: there a tensor of one element costs as much as a small layer.
    """

    count: int
    mean: Tensor | float
    variance: Tensor | float


def moments(values: Tensor) -> Moments:
    """Return the moments of all elements."""
    count = values.numel()
    if not values.is_cpu:
        variance, mean = torch.var_mean(values, correction=0)
        return Moments(count, mean, variance)
    # On a CPU var_mean takes longer than the layer itself. A sum and a scalar product read each element once and write nothing.
    flat = values.reshape(-1) if values.is_contiguous() else _in_memory_order(values)
    average = float(flat.sum()) / count
    pieces = flat.split(_PIECE) if count > _PIECE else (flat,)
    variance_ = sum(float(torch.dot(piece, piece)) for piece in pieces) / count - average * average
    if variance_ * _CANCELLATION < average * average:
        variance_ = float((values - flat.mean()).square_().mean())
    return Moments(count, average, variance_)


def pooled(calls: Sequence[Moments]) -> Moments:
    """Return the moments of the elements of all calls taken together."""
    if len(calls) == 1:
        return calls[0]
    count = sum(call.count for call in calls)
    mean = _sum([call.mean * (call.count / count) for call in calls])
    return Moments(count, mean, _sum([(call.variance + (call.mean - mean) ** 2) * (call.count / count) for call in calls]))


def stacked(values: Sequence[Tensor | float]) -> Tensor:
    """Return numbers, or scalars that may lie on several devices, as one tensor."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return torch.tensor(values, dtype=torch.float64)
    first = tensors[0]
    if len(tensors) == len(values) and all(value.is_cpu and value.dtype is first.dtype for value in tensors):
        return torch.stack(tensors)
    return torch.stack([torch.as_tensor(value, dtype=first.dtype, device=first.device) for value in values])


def _sum(values: list[Tensor | float]) -> Tensor | float:
    total = values[0]
    for value in values[1:]:
        total = total + (value.to(total.device) if isinstance(value, Tensor) and isinstance(total, Tensor) else value)
    return total


def _in_memory_order(values: Tensor) -> Tensor:
    """Return the elements as a vector, of a transposed or channels-last tensor without copying it."""
    return values.permute(sorted(range(values.dim()), key=values.stride, reverse=True)).reshape(-1)
