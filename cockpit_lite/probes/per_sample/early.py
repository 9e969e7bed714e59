"""Measuring a layer while the backward pass is under way, so that nothing of it has to be kept until the end of the step.

Inner products with the gradient need the gradient. It is there sooner than at the end of the pass: autograd adds what has arrived
at a parameter to its gradient before it goes on to the layer below. So a layer whose output gradient has arrived waits until the
nodes that do so are through with all its parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.hooks import RemovableHandle

from cockpit_lite.probes.per_sample.calls import Call
from cockpit_lite.probes.per_sample.drawing import Drawing
from cockpit_lite.probes.per_sample.forwards import Forward
from cockpit_lite.probes.per_sample.survey import condense

#: Elements of output gradients (8 MB in float32) up to which a step keeps them all: letting them go early takes time, too.
KEPT = 2_000_000


class EarlyMeasurement:
    """What is measured in one backward pass.

    Args:
        forwards: The forwards of the step.
        parameters: The trainable parameters by name.
        later: Names of parameters that were measured too early in a step before.
        squares: Whether sums of squares are wanted.
        gradient: Whether inner products with the gradient are wanted: the gradient that is in ``parameter.grad`` after the pass.
        directions: Name -> further direction of inner products, which is parameter name -> tensor.
        drawing: What elements are to be drawn.
        some: How many samples are enough along ``directions``.
        wake: Is called when a gradient has grown, and calls :meth:`measure`.
    """

    def __init__(
        self,
        forwards: Sequence[Forward],
        parameters: Mapping[str, nn.Parameter],
        later: set[str],
        squares: bool,
        gradient: bool,
        directions: Mapping[str, Mapping[str, Tensor]],
        drawing: Drawing | None,
        some: int | None,
        wake: Callable[..., None],
    ) -> None:
        self._wake, self._drawing, self._some = wake, drawing, some
        self._forwards, self._squares, self._gradient, self._directions = forwards, squares, gradient, directions
        self._alone = _alone(forwards, {id(parameters[name]) for name in later})
        self._before: dict[int, tuple[int, int] | None] = {}
        if gradient and self._alone:
            self._before = {id(parameter): _state(parameter) for parameter in parameters.values()}
        self._waiting: list[Call] = []
        self._handles: list[RemovableHandle] = []
        self._measured: list[tuple[Call, list[tuple[nn.Parameter, tuple[int, int] | None]]]] = []

    def arrived(self, call: Call) -> None:
        """An output gradient of the call has arrived."""
        if not self._alone:
            return
        if id(call) in self._alone and not call.spent and not _graph_is_kept():
            self._waiting.append(call)
            if self._gradient:
                self._wait_for_the_gradient(call)
        self.measure()

    def _wait_for_the_gradient(self, call: Call) -> None:
        assert call.owner is not None
        for parameter in call.owner.parameters.values():
            node: Any = get_gradient_edge(parameter).node  # it lives as long as the graph does, and no hook is left on it
            self._handles.append(node.register_hook(self._wake))

    def end(self) -> None:
        """The pass is over. What was measured with a gradient that has changed since is worthless."""
        self.measure()
        self.stop()
        for call, states in self._measured:
            if any(_state(parameter) != before for parameter, before in states):
                call.condensed = {}

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._waiting = []
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def withdraw(self) -> None:
        """Another pass begins: the gradient was not complete."""
        if self._gradient or self._drawing is not None:
            for call, _ in self._measured:
                call.condensed = {}

    def measure(self) -> None:
        """Measure those that are waiting and have all they need."""
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            if not self._ready(call):
                self._waiting.append(call)
                continue
            batch_size = self._forwards[call.forward].batch_size
            assert batch_size is not None and call.owner is not None
            directions, parameters = self._directions, call.owner.parameters
            if self._gradient:
                gradient = {call.owner.names[local]: parameter.grad for local, parameter in parameters.items()}
                directions = {"": {name: value for name, value in gradient.items() if value is not None}, **directions}
            watched = parameters.values() if self._gradient else ()
            self._measured.append((call, [(parameter, _state(parameter)) for parameter in watched]))
            with torch.no_grad(), _without_autocast(call), suppress(Exception):
                # where it fails, the survey fails again and says why
                condense(call, batch_size, self._squares, directions, self._drawing, self._some)

    def _ready(self, call: Call) -> bool:
        if any(projection.delta is None for projection in call.projections.values()):
            return False
        if not self._gradient:
            return True
        assert call.owner is not None
        return all(
            parameter.grad is not None and _state(parameter) != self._before[id(parameter)]
            for parameter in call.owner.parameters.values()
        )


def _without_autocast(call: Call) -> AbstractContextManager[Any]:
    """Calculate in the precision of the tensors; to say so takes its time, and is seldom needed."""
    return torch.autocast(call.device.type, enabled=False) if torch._C._is_any_autocast_enabled() else nullcontext()


def _alone(forwards: Sequence[Forward], later: set[int]) -> set[int]:
    """Return the ids of the calls that may be measured as soon as their gradient has arrived."""
    calls = [call for forward in forwards for call in forward.calls if not call.spent]
    if sum(call.shapes[0].numel() for call in calls) <= KEPT:
        return set()
    uses = Counter(id(parameter) for call in calls for parameter in call.module._parameters.values())
    return {
        id(call)
        for call in calls
        if call.outputs_forgotten
        and call.layout is not None
        and not call.layout.reason
        and forwards[call.forward].batch_size is not None
        and call is not forwards[call.forward].whole
        and all(p is None or (uses[id(p)] == 1 and id(p) not in later) for p in call.module._parameters.values())
    }


def _state(parameter: nn.Parameter) -> tuple[int, int] | None:
    """Return what changes when something is added to the gradient."""
    return None if parameter.grad is None else (id(parameter.grad), parameter.grad._version)


def _graph_is_kept() -> bool:
    """Whether the backward pass that is under way may be followed by another one over the same graph."""
    known = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return known is None or known()
