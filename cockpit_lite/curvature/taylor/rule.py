"""The table of rules: which operation moves its result how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

#: Takes the operation, its arguments and its keyword arguments, of which some move; returns the result, with its moves.
Rule = Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]

RULES: dict[OpOverload, Rule] = {}


class _Missing:
    """An operation that this version of PyTorch does not have."""

    def __getattr__(self, overload: str) -> None:
        return None


class _Operations:
    """PyTorch's operations by name; ``aten.missing.default`` is None for one that this version does not have."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(torch.ops.aten, name, None) or _Missing()
        setattr(self, name, found)
        return found


aten = _Operations()


def rule(*operations: OpOverload | None) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operations."""

    def enter(function: Rule) -> Rule:
        RULES.update((operation, function) for operation in operations if operation is not None)
        return function

    return enter
