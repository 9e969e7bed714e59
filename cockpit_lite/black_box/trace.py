"""Watching a forward and a backward pass operation by operation, for the first one that makes bad values out of good ones.

Forward, every operation of torch is seen just before it runs, with the module that it runs in and the line of code. Backward,
every node of the graph is. A bad value is NaN or infinite. Not every one is to blame: a mask is minus infinity on purpose, and a
softmax makes ordinary numbers of it. So it is noted which bad values were made of which, and the search begins at the end: what
the bad result was made of, back to the operations whose own inputs were good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cockpit_lite.black_box.loss_operations import describe, kept_by

#: Their result is memory that was not written to yet.
_UNWRITTEN = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize"})
#: They write over their first argument without looking at it.
_OVERWRITING = frozenset({"copy", "fill", "zero", "normal", "uniform", "bernoulli", "exponential", "random", "resize"})
#: They put a value where somebody wants it: an infinity of theirs is meant.
_DELIBERATE = frozenset(
    {
        "fill",
        "full",
        "full_like",
        "new_full",
        "masked_fill",
        "scalar_tensor",
        "where",
        "masked_scatter",
        "index_fill",
        "lift_fresh",
    }
)


@dataclass
class Event:
    """One operation that had something to do with bad values.

    Attributes:
        index: Its number in the pass.
        operation: Such as ``"log"``; backward the name of the node, such as ``"SqrtBackward0"``.
        module: Path of the module in the model; "" outside of all; None: not known.
        source: The line of the user's code, ``"model.py:12, in forward"``.
        born: Whether its inputs were good enough and its result is not: ``"nan"``, ``"infinite"`` or "".
        parents: The operations that made its bad inputs.
        leaves: Bad inputs that no operation has made.
        inputs: Ranges of its inputs, of a birth.
        keeps: Backward: ranges of what the operation has kept of the forward pass.
        output: Range of its result.
        place: Index of the first bad element of its result.
    """

    index: int
    operation: str
    module: str | None
    source: str
    born: str = ""
    parents: list[Event] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    inputs: list[dict[str, float]] = field(default_factory=list)
    keeps: dict[str, dict[str, float]] = field(default_factory=dict)
    output: dict[str, float] = field(default_factory=dict)
    place: tuple[int, ...] = ()


class ForwardTrace(TorchDispatchMode):
    """Use it as a context around the forward pass.

    Args:
        model: Whose modules are named.

    Attributes:
        by_number: Number of a node of the graph -> module and line of the operation that made it.
        modules: Modules that gave back bad values, in the order in which they ended.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.by_number: dict[int, tuple[str, str]] = {}
        self.modules: list[str] = []
        self._names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._count = 0
        self._makers: dict[int, Event] = {}  # by the address of the memory
        self._held: list[Tensor] = []  # so that no address is used again
        self._exit = ExitStack()

    def __enter__(self) -> ForwardTrace:
        self._exit.callback(register_module_forward_pre_hook(self._enters).remove)
        self._exit.callback(register_module_forward_hook(self._leaves, always_call=True).remove)
        super().__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self._exit.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2].rstrip("_").lstrip("_")
        given = _floating((args[1:] if name in _OVERWRITING else args, kwargs or {}))
        bad = [tensor for tensor in given if _state(tensor)]
        states = "".join(map(_state, bad))
        had_nan = "n" in states
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        source = _source()
        module = self._stack[-1] if self._stack else ""
        self.by_number.setdefault(number, (module, source))
        before = [describe(tensor) for tensor in given] if func._schema.is_mutable else None
        result = func(*args, **(kwargs or {}))
        self._count += 1
        if name in _UNWRITTEN:
            return result
        for tensor in _floating(result):
            state = _state(tensor)
            if not state:
                continue
            born = "nan" if "n" in state and not had_nan else "infinite" if not bad and name not in _DELIBERATE else ""
            event = Event(self._count, name, module, source, born)
            for cause in bad:
                maker = self._makers.get(_address(cause))
                if maker is None:
                    event.leaves.append(cause)
                elif maker is not event:
                    event.parents.append(maker)
            if born:
                event.inputs = [describe(tensor) for tensor in given] if before is None else before
                event.place = first_bad(tensor)
            event.output = describe(tensor)
            self._makers[_address(tensor)] = event
            self._held.append(tensor)
        return result

    def history(self, results: Iterable[Tensor]) -> list[Event]:
        """Return the events that bad results came from, in order."""
        waiting = [self._makers[_address(tensor)] for tensor in results if _address(tensor) in self._makers and _state(tensor)]
        found: dict[int, Event] = {}
        while waiting:
            event = waiting.pop()
            if id(event) not in found:
                found[id(event)] = event
                waiting += event.parents
        return sorted(found.values(), key=lambda event: event.index)

    def _enters(self, module: nn.Module, args: Any) -> None:
        self._stack.append(self._names.get(id(module), self._stack[-1] if self._stack else ""))

    def _leaves(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self._stack.pop()
        if any(_address(tensor) in self._makers and _state(tensor) for tensor in _floating(output)):
            self.modules.append(name)


class BackwardTrace:
    """Looks at what every node of a graph gets and gives in a backward pass.

    Args:
        roots: Where the pass begins.
        by_number: See :class:`ForwardTrace`.

    Attributes:
        births: Nodes that made bad values of good ones, in order. What they keep is there if the graph is retained.
    """

    def __init__(self, roots: Iterable[Tensor], by_number: Mapping[int, tuple[str, str]]):
        self.births: list[Event] = []
        self._by_number = by_number
        self._count = 0
        self._handles = []
        waiting: list[Any] = [root.grad_fn for root in roots]
        seen: set[Any] = set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            self._handles.append(node.register_hook(self._look(node)))
            waiting.extend(following for following, _ in node.next_functions)

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _look(self, node: Any) -> Any:
        def look(gives: Any, gets: Any) -> None:
            self._count += 1
            got, gave = _floating(gets), _floating(gives)
            states = "".join(map(_state, got))
            for gradient in gave:
                state = _state(gradient)
                if not state or (states and not ("n" in state and "n" not in states)):
                    continue
                module, source = self._by_number.get(node._sequence_nr(), (None, ""))
                name = node.name().removeprefix("torch::autograd::")
                born = "nan" if "n" in state else "infinite"
                event = Event(self._count, name, module, source, born, inputs=[describe(tensor) for tensor in got])
                event.output, event.place, event.keeps = describe(gradient), first_bad(gradient), kept_by(node)
                self.births.append(event)
                return

        return look


def first_bad(tensor: Tensor) -> tuple[int, ...]:
    """Return the index of the first element that is NaN or infinite; empty for a scalar, or if there is none."""
    places = (~torch.isfinite(tensor)).nonzero()
    return tuple(places[0].tolist()) if len(places) else ()


def _state(tensor: Tensor) -> str:
    """Return "" if all elements are finite, else what there is: "n" for NaN, "i" for infinities."""
    if not tensor.numel() or bool(torch.isfinite(tensor).all()):
        return ""
    return ("n" if bool(tensor.isnan().any()) else "") + ("i" if bool(tensor.isinf().any()) else "")


def _floating(values: Any) -> list[Tensor]:
    found = tree_flatten(values)[0]
    return [value for value in found if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


_OWN = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def _source() -> str:
    """Return the line of code outside of torch and of cockpit-lite that is being run."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_OWN):
            return f"{os.path.basename(path)}:{frame.f_lineno}, in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
