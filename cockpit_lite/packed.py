"""Copies of many tensors that lie one behind the other: what is done to all of them is started once.

The weights of a small net are many short tensors, and an operation on one of them takes longer to start than to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor


class Packed(Mapping[str, Tensor]):
    """Tensors by name, parts of one vector.

    Args:
        flat: All elements.
        shapes: Name -> shape, in the order of the vector.
    """

    def __init__(self, flat: Tensor, shapes: Mapping[str, torch.Size]) -> None:
        self.flat, self.shapes = flat, shapes

    @cached_property
    def _parts(self) -> dict[str, Tensor]:
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes


def packed(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a copy of the tensors: packed if they are of one kind, otherwise as a dictionary."""
    kinds = {(tensor.dtype, tensor.device, tensor.layout, type(tensor)) for tensor in tensors.values()}
    if len(kinds) == 1 and next(iter(kinds))[2:] == (torch.strided, Tensor):
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
        return Packed(flat, {name: tensor.shape for name, tensor in tensors.items()})
    return {name: tensor.clone() for name, tensor in tensors.items()}


def flats(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return the vectors that the two are parts of, if these correspond; otherwise None."""
    alike = isinstance(left, Packed) and isinstance(right, Packed) and left.shapes == right.shapes
    if not alike or list(left) != list(right):
        return None
    a, b = left.flat, right.flat  # type: ignore[attr-defined]
    return (a, b) if a.dtype == b.dtype and a.device == b.device else None


def difference(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return ``now - before`` for the names of ``before``."""
    now = {name: now[name] for name in before}
    if isinstance(before, Packed):
        moved = packed(now)
        pair = flats(moved, before)
        if pair is not None:
            pair[0].sub_(pair[1])
            return moved
    return dict(zip(before, torch._foreach_sub(list(now.values()), list(before.values())), strict=True))
