"""The table of rules: which operation moves its result how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch._ops import OpOverload

#: Takes the operation, its arguments and its keyword arguments, of which some move; returns the result, with its moves.
Rule = Callable[[OpOverload, tuple[Any, ...], dict[str, Any]], Any]

RULES: dict[OpOverload, Rule] = {}


def rule(*operations: OpOverload) -> Callable[[Rule], Rule]:
    """Make a function the rule of these operations."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operations, function))
        return function

    return enter
