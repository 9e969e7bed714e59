"""Norms over parameter dictionaries, on the device and in float32 or better."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def parameter_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the Euclidean norm of each tensor, as scalars by name."""
    if not tensors:
        return {}
    # One fused call for all; half precision would overflow at 65504.
    values = [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors.values()]
    return dict(zip(tensors, torch._foreach_norm(values), strict=True))


def total_norm(norms: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of all tensors together, given the norm of each."""
    if not norms:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack([norm.to(next(iter(norms.values())).device) for norm in norms.values()]))
