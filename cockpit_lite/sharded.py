"""Tensors of which each process holds a part, as the parameters under FSDP and tensor parallelism.

Their norms follow from what each process makes of its part; their elements are nowhere together, and whoever asks for those is
told that they are not measured. Under FSDP (``fully_shard``) they are whole while a module is called, and only then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any, NoReturn

from torch import Tensor, nn

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


def held(tensor: Tensor) -> tuple[int, int, int] | None:
    """Return what this process holds of a tensor: along an axis so many places from a first one on.

    Returns:
        Axis, first place and number of places; ``None`` unless it is cut once, along one axis, in the usual way.
    """
    if not is_sharded(tensor):
        return None
    whole: Any = tensor
    cuts = [(axis, place) for axis, place in enumerate(whole.placements) if not place.is_replicate()]
    if len(cuts) != 1 or type(cuts[0][1]).__name__ != "Shard":
        return None
    (axis, place), position = cuts[0], whole.device_mesh.get_coordinate()
    if position is None:
        return None
    size = whole.shape[place.dim]
    each = -(-size // whole.device_mesh.size(axis))  # as torch.chunk cuts: the last ones may be shorter, or empty
    first = min(position[axis] * each, size)
    return place.dim, first, min(each, size - first)


def unsharded_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module: ``fully_shard`` gives it one of its own, which calculates what that does."""
    kind = type(module)
    return kind.__bases__[1] if _is_fully_sharded(kind) else kind


def whole_in_calls(model: nn.Module, parameters: Iterable[Tensor], processes: int) -> bool:
    """Return whether FSDP, and nothing else, has cut the parameters: each is whole while the module that uses it is called.

    Args:
        model: The model.
        parameters: Its parameters.
        processes: How many train together, each with samples of its own.
    """
    gathered = {id(p) for module in model.modules() if _is_fully_sharded(type(module)) for p in module.parameters()}
    whole: list[Any] = list(parameters)
    return all(id(p) in gathered and held(p) is not None and p.device_mesh.size() == processes for p in whole)


def _is_fully_sharded(kind: type) -> bool:
    """Whether the class is one that ``fully_shard`` has made; to ask the class itself would import it, which takes seconds."""
    return [base.__name__ for base in kind.__bases__[:1]] == ["FSDPModule"] and len(kind.__bases__) == 2


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
