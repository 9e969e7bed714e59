"""Tensors of which each process holds a part, as the parameters under FSDP and tensor parallelism.

Their norms follow from what each process makes of its part; their elements are nowhere together, and whoever asks for those is
told that they are not measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NoReturn

from torch import Tensor

from cockpit_lite.errors import NotMeasured

_IN_PARTS = "the parameters are sharded, and each process holds a part of every tensor"
_ALONE = "the parameters are sharded over processes that do not measure together: hand over process_group="


def is_sharded(tensor: Tensor) -> bool:
    """Return whether it is one of those (a DTensor, whose import takes seconds)."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def any_is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Return whether one of them is."""
    return any(map(is_sharded, tensors))


def part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a detached tensor: all of it, unless it is sharded."""
    mine: Any = tensor
    return mine.to_local() if is_sharded(tensor) else tensor


def copies(tensor: Tensor, processes: int) -> int:
    """Return how many of the processes hold the same part."""
    if not is_sharded(tensor):
        return processes
    whole: Any = tensor
    sizes = [whole.device_mesh.size(axis) for axis, place in enumerate(whole.placements) if place.is_shard()]
    return processes // prod(sizes)


class Sharded(Mapping[str, Tensor]):
    """Tensors by name, of which this process holds ``parts``.

    Attributes:
        parts: What it holds.
    """

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        self.parts = parts
        self._norms: Mapping[str, Tensor] | None = None
        self._distance: Tensor | None = None
        self._reason = _ALONE

    def tell(self, norms: Mapping[str, Tensor] | None, reason: str = "") -> None:
        """Say what all processes have found together: the norms of the whole tensors, or why they are not known."""
        self._norms, self._reason = norms, reason

    def tell_distance(self, distance: Tensor) -> None:
        """Say how far the whole tensors are from where training began."""
        self._distance = distance

    @property
    def norms(self) -> dict[str, Tensor]:
        """The norms of the whole tensors.

        Raises:
            NotMeasured: if they are not known.
        """
        if self._norms is None:
            raise NotMeasured(self._reason)
        return dict(self._norms)

    @property
    def distance(self) -> Tensor:
        """How far the whole tensors are from where training began.

        Raises:
            NotMeasured: if it is not known.
        """
        if self._distance is None:
            raise NotMeasured(self._reason or "it is known at the end of a step only")
        return self._distance

    def __getitem__(self, name: str) -> NoReturn:
        raise NotMeasured(_IN_PARTS)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self.parts
