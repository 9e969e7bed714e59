"""Operations whose result does not depend on what moves their arguments, or not in a way that autograd knows of."""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload

from cockpit_lite.curvature.taylor.moves import with_moves
from cockpit_lite.curvature.taylor.rule import aten, rule


@rule(
    aten.detach.default,
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty_strided.default,
    aten.sign.default,
    aten.sgn.default,
    aten.round.default,
    aten.floor.default,
    aten.ceil.default,
    aten.trunc.default,
    aten.bernoulli.default,
    aten.heaviside.default,
)
def constant(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return a constant, also where it shares memory with what moves."""
    return with_moves(func(*args, **kwargs), None)
