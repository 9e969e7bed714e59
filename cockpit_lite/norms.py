"""Norms over parameter dictionaries, on the device and in float32 or better."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cockpit_lite.packed import flats
from cockpit_lite.sharded import Sharded

#: Elements that are gone through in one go on a CPU, which adds squares and products one after the other: over 50 million of
#: them the norm is off by 0.4 %. Half a megabyte in float32, which also stays in the cache between two operations.
PIECE = 1 << 17


def in_pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the flat tensor, in pieces if it is long and on a CPU."""
    flat = tensor.reshape(-1)
    return flat.split(PIECE) if _is_long(flat) else (flat,)


def parameter_norms(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the Euclidean norm of each tensor, as scalars by name."""
    if not tensors:
        return {}
    if isinstance(tensors, Sharded):
        return tensors.norms
    # One fused call for all; half precision would overflow at 65504.
    values = [tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor for tensor in tensors.values()]
    brief = [value for value in values if not _is_long(value)]
    short = iter(torch._foreach_norm(brief) if brief else [])
    return {name: _norm_in_pieces(value) if _is_long(value) else next(short) for name, value in zip(tensors, values, strict=True)}


def difference_norm(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean norm of ``tensors - others`` over the names of both; of long tensors no difference is kept."""
    if isinstance(tensors, Sharded):
        return tensors.distance
    pair = flats(tensors, others)
    if pair is not None:
        return _difference_norm(*pair)
    return total_norm({name: _difference_norm(tensor, others[name]) for name, tensor in tensors.items() if name in others})


def difference_norms(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the Euclidean norm of each of ``tensors - others``, by the names of ``others``; of long tensors none is kept."""
    pairs = {name: (tensors[name], other) for name, other in others.items()}
    brief = {name: pair for name, pair in pairs.items() if not _is_long(pair[0])}
    parts = torch._foreach_sub([here for here, _ in brief.values()], [there for _, there in brief.values()]) if brief else ()
    norms = parameter_norms(dict(zip(brief, parts, strict=True)))
    return {name: norms[name] if name in norms else _difference_norm(*pair) for name, pair in pairs.items()}


def total_norm(norms: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of all tensors together, given the norm of each."""
    if not norms:
        return torch.zeros(())
    parts = list(norms.values())
    device = parts[0].device
    return torch.linalg.vector_norm(torch.stack([norm if norm.device == device else norm.to(device) for norm in parts]))


def _is_long(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.numel() > PIECE


def _norm_in_pieces(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(in_pieces(tensor))))


def _difference_norm(tensor: Tensor, other: Tensor) -> Tensor:
    pairs = list(zip(in_pieces(tensor), in_pieces(other), strict=True))
    room = torch.empty_like(pairs[0][0], dtype=torch.promote_types(tensor.dtype, torch.float32))
    return torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(torch.sub(a, b, out=room[: a.numel()])) for a, b in pairs])
    )
