"""What a model is given, as plain containers of tensors that a file can hold without executing anything, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

#: Marks a value of which only the type could be kept, and one that has to be made again.
_LEFT_OUT, _PACKED = "not kept", "packed sequence"
#: Deeper nesting than this no batch has.
MOST_NESTING = 40


class NotKept:
    """Stands for a value that no file of plain containers can hold.

    Attributes:
        kind: Name of its type.
    """

    def __init__(self, kind: str):
        self.kind = kind


def plain_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor on the host that owns just its elements: a view would take all that it looks at into the file."""
    tensor = tensor.detach()
    if type(tensor) is not Tensor:
        tensor = tensor.as_subclass(Tensor)
    host = tensor.resolve_conj().resolve_neg().cpu()
    if host.untyped_storage().nbytes() != host.numel() * host.element_size():
        host = host.clone()
    return host


def plain(value: Any, nesting: int = 0) -> Any:
    """Return ``value`` as tensors, numbers, texts, lists, tuples and dictionaries; what is none of these is marked.

    >>> restored(plain({"x": (1, 2.5), "graph": object()}))["x"]
    (1, 2.5)
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        holdable = value.layout == torch.strided and not value.is_meta and not value.is_quantized and not _is_distributed(value)
        return plain_tensor(value) if holdable else {_LEFT_OUT: type(value).__name__}
    if nesting < MOST_NESTING:
        if isinstance(value, PackedSequence):
            return {_PACKED: [plain(part, nesting + 1) for part in value]}
        if isinstance(value, Mapping) and all(type(key) is str for key in value):
            return {key: plain(item, nesting + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            items = [plain(item, nesting + 1) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (torch.dtype, torch.device, torch.Size)):
        return str(value)
    return {_LEFT_OUT: type(value).__name__}


def restored(value: Any) -> Any:
    """Undo :func:`plain`; what could not be kept is a :class:`NotKept`."""
    if isinstance(value, dict):
        if value.keys() == {_LEFT_OUT}:
            return NotKept(str(value[_LEFT_OUT]))
        if value.keys() == {_PACKED}:
            return PackedSequence(*(restored(part) for part in value[_PACKED]))
        return {key: restored(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [restored(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of everything in containers, dataclasses included.

    >>> [path for path, _ in leaves(([1, 2], {"mask": 3}))]
    ['[0][0]', '[0][1]', '[1].mask']
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}[{number}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}" if path else field.name)
    else:
        yield path, value


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in containers, in order."""
    if isinstance(value, Tensor):  # nearly always, and at every step
        return [value]
    if type(value) in (list, tuple) and all([isinstance(item, Tensor) for item in value]):
        return list(value)
    return [leaf for _, leaf in leaves(value) if isinstance(leaf, Tensor)]


def size(value: Any) -> int:
    """Return how many bytes the tensors in containers hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))


def _is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor; its import takes seconds
