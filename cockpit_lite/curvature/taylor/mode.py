"""Sees every operation of a forward pass, and lets its rule make the moves of the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from cockpit_lite.curvature.taylor.moves import Moves, NoForwardMode, change, frugal, moves_of, shared, with_moves
from cockpit_lite.curvature.taylor.rule import RULES, Rule, aten

#: In-place operations that change how a tensor is laid out and not what it holds, and their counterparts, ...
_LAYOUTS = {
    aten.transpose_.default: aten.transpose.int,
    aten.t_.default: aten.t.default,
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.as_strided_.default: aten.as_strided.default,
}

#: ... and that do not look at what it held.
_FILLS = frozenset({"zero_", "fill_", "bernoulli_", "normal_", "uniform_", "random_", "exponential_"})


class TaylorMode(TorchDispatchMode):
    """In this block tensors with moves (:func:`with_moves`) move what is computed of them.

    Constants are what autograd takes for constants: whatever was detached or computed in a block without gradients.

    Args:
        is_frugal: The moves of an activation may lie in the memory of those that they were made of; if somebody needs these
            again, :class:`Taken` is raised.
    """

    def __init__(self, is_frugal: bool = False) -> None:
        super().__init__()
        self._is_frugal = is_frugal
        self._obstacle: NoForwardMode | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # a guard around each operation, for compilers; here nothing is compiled

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        try:
            return _apply(func, args, kwargs or {})
        except NoForwardMode as obstacle:
            self._obstacle = obstacle
            raise

    def __enter__(self) -> TaylorMode:
        # The layers of a transformer have a kernel for all at once where nothing is differentiated.
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self._token = frugal.set(self._is_frugal)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        frugal.reset(self._token)
        torch.backends.mha.set_fastpath_enabled(self._fast_path)

    def check(self) -> None:
        """Raise what was raised in the block, which the model may have caught.

        Raises:
            NoForwardMode: if something has no rule.
        """
        if self._obstacle is not None:
            raise self._obstacle


def _apply(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not _any_moves(args) and not (kwargs and _any_moves(kwargs.values())):
        return func(*args, **kwargs)
    found = RULES.get(func)
    in_place = found is None and func._schema.is_mutable
    if not torch.is_grad_enabled():
        if in_place and any(moves_of(value) is not None for value in _written(func, args)):
            raise NoForwardMode("something that moves is changed in place in a block without gradients")
        result = func(*args, **kwargs)
        for value in _tensors((result,), {}) if func.is_view else ():
            with_moves(value, None)
        return result
    _check_plain()
    if found is not None:
        return _by(found, func, args, kwargs)
    if in_place:
        return _in_place(func, args, kwargs)
    result = func(*args, **kwargs)
    if any(value.is_floating_point() or value.is_complex() for value in _tensors((result,), {})):
        raise NoForwardMode(f"it is not known how {func} moves")
    return result


def _any_moves(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, Tensor):
            if moves_of(value) is not None:
                return True
        elif isinstance(value, (list, tuple)) and _any_moves(value):
            return True
    return False


def _check_plain() -> None:
    """Make sure that the operation is the model's own, and not one of a derivative that it takes.

    Raises:
        NoForwardMode: else; such operations get tensors that their moves were not written on.
    """
    if torch._C._current_graph_task_id() != -1 or forward_ad._current_level >= 0:
        raise NoForwardMode("the model differentiates in its forward")


def _by(found: Rule, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    try:
        return found(func, args, kwargs)
    except (NoForwardMode, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise NoForwardMode(f"the moves of {func} could not be made ({type(error).__name__}: {error})") from error


def _in_place(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do an operation in place whose arguments move: its counterpart makes the values and the moves, which are written back."""
    name, target = func._schema.name.removeprefix("aten::"), args[0]
    if name == "copy_":
        moves = shared(args[1])
        change(target, moves and _like(moves, target))
        return func(*args, **kwargs)
    if name in _FILLS and sum(1 for _ in _tensors(args, kwargs)) == 1:
        change(target, None)
        return func(*args, **kwargs)
    packet = getattr(aten, name[:-1], None) if name.endswith("_") else None
    counterpart = _LAYOUTS.get(func) or getattr(packet, func._overloadname, None)
    if counterpart not in RULES or not isinstance(target, Tensor):
        raise NoForwardMode(f"it is not known how {func} moves")
    result = _by(RULES[counterpart], counterpart, args, kwargs)
    moves = moves_of(result)
    if func in _LAYOUTS:
        func(*args, **kwargs)
        assert moves is not None
        return with_moves(target, moves.first, moves.second, changes=1)
    change(target, moves and _like(moves, target))
    return target.copy_(result)


def _like(moves: Moves, target: Tensor) -> Moves:
    second = None if moves.second is None else moves.second.to(target).expand_as(target)
    return moves._replace(first=moves.first.to(target).expand_as(target), second=second)


def _written(func: OpOverload, args: tuple[Any, ...]) -> Iterator[Tensor]:
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.is_write:
            yield from _tensors((value,), {})


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, and in lists of them."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(tuple(value), {})
    if kwargs:
        yield from _tensors(tuple(kwargs.values()), {})
