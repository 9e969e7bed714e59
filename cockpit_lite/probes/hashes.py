"""Hashes: whether tensors are the same in other processes, told by one number."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

#: Elements of a tensor that are looked at.
MOST_ELEMENTS = 4096
#: Whole numbers that a float64 can hold.
_RANGE = 2**48


def tensors_hash(tensors: Iterable[Tensor]) -> Tensor:
    """Return a whole number that is equal for equal tensors and hardly ever for others; at least one is needed."""
    tensors = list(tensors)
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for number, tensor in enumerate(tensors):
        values = tensor.detach().reshape(-1)
        bits = values[:: -(-len(values) // MOST_ELEMENTS) or 1].float().view(torch.int32).long()
        places = torch.arange(1, 2 * len(bits), 2, device=bits.device) * (2 * number + 1) * 0x9E3779B97F4A7C1
        total = total + (bits * places.to(total.device)).sum().to(total.device)  # around the end of 64 bits, on purpose
    return total.remainder(_RANGE)
