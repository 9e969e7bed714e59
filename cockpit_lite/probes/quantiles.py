"""Quantiles over the elements of many tensors: how values that are as many as the weights become one small reading."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

#: The shares of the elements below each value.
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
#: Of more elements than this an even selection is sorted; the ends are those of all.
MOST_SORTED = 100_000


def quantiles(tensors: Iterable[Tensor]) -> Tensor:
    """Return the quantiles :data:`QUANTILES` of all elements together, shape (7,)."""
    flat = [tensor.reshape(-1) for tensor in tensors if tensor.numel()]
    device = flat[0].device
    stride = max(1, sum(tensor.numel() for tensor in flat) // MOST_SORTED)
    chosen = torch.cat([tensor[::stride].to(device, torch.float32) for tensor in flat])
    found = torch.quantile(chosen, torch.tensor(QUANTILES, device=device))
    found[0] = torch.stack([tensor.min().to(device, torch.float32) for tensor in flat]).min()
    found[-1] = torch.stack([tensor.max().to(device, torch.float32) for tensor in flat]).max()
    return found
