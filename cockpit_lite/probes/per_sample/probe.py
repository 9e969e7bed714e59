"""The probe: watches the calls of one training step and what the backward passes send back into them.

Only global module hooks and hooks on output tensors are used, for as long as the step runs. Nothing is set on the user's modules,
parameters or tensors, so a copy, a pickle or a state dict taken in the middle of a step carries nothing of it, and what is
remembered of a call dies with the call's graph unless a backward pass reaches it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules import module as module_registry
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes import tensor_hooks
from cockpit_lite.probes.per_sample.around import Learned
from cockpit_lite.probes.per_sample.calls import Call, first_tensor, tensors_in
from cockpit_lite.probes.per_sample.forwards import Answer, Forward
from cockpit_lite.probes.per_sample.layers import PerSampleGradients
from cockpit_lite.probes.per_sample.owners import normalises_over_batch
from cockpit_lite.probes.per_sample.projections import watch_projections
from cockpit_lite.probes.per_sample.rules import RULES
from cockpit_lite.probes.per_sample.rules.rule import random_state
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics
from cockpit_lite.probes.per_sample.survey import Survey, condense, connected
from cockpit_lite.probes.tensor_hooks import register_hook_unseen

#: Calls of the model whose graphs are held at a time because a backward pass may come for them all together.
MOST_WAITING = 4

#: Elements of output gradients (8 MB in float32) up to which a step keeps them all: letting them go early takes time, too.
KEPT = 2_000_000

Method = TypeVar("Method", bound=Callable[..., Any])


def _harmless(method: Method) -> Method:
    """Nothing that fails while the user's code runs may reach it: the probe stops and says why no parameter is covered."""

    @wraps(method)
    def guarded(self: PerSampleProbe, *args: Any) -> Any:
        if torch.compiler.is_compiling():  # a hook that is traced into compiled code must not be there
            return None
        try:
            return method(self, *args)
        except Exception as error:
            self._failed(error)
            return None

    return guarded  # type: ignore[return-value]  # the same signature


class MicroBatch(NamedTuple):
    """A part of a step's batch.

    Attributes:
        backwards: Numbers of the backward passes that it went through.
        batch_size: Number of its samples.
        axis: The axis of the model's input that holds them.
    """

    backwards: list[int]
    batch_size: int
    axis: int


class PerSampleProbe:
    """Watches one tracked step.

    ``start``, then the user's forwards and backwards with ``backward_begins`` and ``backward_ends`` around each backward, then
    :meth:`statistics` and ``stop``. It may be started again for another step.

    Args:
        model: The model; its submodules may also be called on their own.
        parameters: The trainable parameters by name, tied ones once.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self._trainable = {id(parameter) for parameter in self.parameters.values()}
        self._handles: list[RemovableHandle] = []
        self._step = 0  # counts the steps that were watched
        # what holds from step to step: structures of calls, and parameters that were tried in vain
        self._known: dict[tuple[object, ...], Answer] = {}
        self._learned = Learned()
        self._used_again: set[str] = set()  # names of parameters that were measured too early
        self._products = self._squares = self._gradients = True  # what may be asked for
        self._reset()

    def _reset(self) -> None:
        self._step += 1
        self._modules: dict[int, nn.Module] = {}
        self._owners: set[int] = set()
        self._open: list[tuple[int, int]] = []  # ids of the modules that are being called, outermost first, and when they began
        self._begun = 0  # counts the calls
        self._forwards: list[Forward] = []
        self._in_backward = False
        self._paused = False
        self._failure = ""
        self._random_states: dict[int, tuple[Tensor, ...]] = {}  # of the modules that are being called
        self._reached: list[set[int]] = []  # forwards that each backward reached
        self._calls: dict[int, Call] = {}  # calls that a backward reached, by id
        self._alone: set[int] = set()  # ids of the calls that no other call shares a parameter with
        self._survey: Survey | None = None  # that the last statistics came from

    def start(self, products: bool = True, squares: bool = True, gradients: bool = False) -> None:
        """Begin to watch a step.

        Args:
            products: Whether inner products may be asked for. If not, what a layer's statistics need is let go as soon as its
                gradient has arrived, where the rule and the graph allow it, and the step takes less memory.
            squares: Whether sums of squares may be asked for.
            gradients: Whether the gradients themselves may be asked for: nothing is let go then.
        """
        self.stop()
        self._products, self._squares, self._gradients = products, squares, gradients
        self._user_hooks = tensor_hooks.registrations()  # they would fire in passes that are not the user's
        self._modules = {id(module): module for module in self.model.modules()}
        self._owners = {
            key
            for key, module in self._modules.items()
            if any(id(parameter) in self._trainable for parameter in module._parameters.values()) or is_parametrized(module)
        }
        self._handles = [
            register_module_forward_pre_hook(self._before_call),
            register_module_forward_hook(self._after_call, with_kwargs=True),
        ]

    def stop(self) -> None:
        """Stop watching. May be called twice."""
        for handle in self._handles:
            handle.remove()
            # PyTorch forgets to (seen in 2.15), and then warns of hooks that are no longer there.
            module_registry._global_forward_hooks_with_kwargs.pop(handle.id, None)
        self._handles = []
        self._reset()

    @property
    def batch(self) -> tuple[int | None, int]:
        """Number of samples of the last forward, None if not known, and the axis of its input; known once a backward begins."""
        return (self._forwards[-1].batch_size, self._forwards[-1].axis) if self._forwards else (None, 0)

    @_harmless
    def backward_begins(self) -> None:
        """From here on output gradients count."""
        self._in_backward = False
        with self.paused():
            for forward in self._forwards:
                if not forward.surveyed:
                    forward.survey(self._known, ask=tensor_hooks.registrations() == self._user_hooks)
                    forward.release()
        if not (self._products or self._gradients):
            self._alone = self._find_alone()
        self._reached.append(set())
        self._in_backward = True

    def _find_alone(self) -> set[int]:
        """Return the ids of the calls that may be measured as soon as their gradient has arrived."""
        calls = [call for forward in self._forwards for call in forward.calls if not call.spent]
        uses = Counter(id(parameter) for call in calls for parameter in call.module._parameters.values())
        later = {id(self.parameters[name]) for name in self._used_again}
        alone = [
            call
            for call in calls
            if call.outputs_forgotten
            and call.layout is not None
            and not call.layout.reason
            and call is not self._forwards[call.forward].whole
            and all(p is None or (uses[id(p)] == 1 and id(p) not in later) for p in call.module._parameters.values())
        ]
        if sum(call.outputs[0].numel() for call in alone) <= KEPT:
            return set()
        return {id(call) for call in alone}

    def backward_ends(self) -> None:
        """From here on they do not: tensor hooks fire again in Hessian-vector products."""
        self._in_backward = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While paused nothing is recorded: for second forwards and backwards that are not the user's."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def outputs(self) -> list[Tensor]:
        """Return what those calls of the model returned whose backward pass has not come yet."""
        return [output for forward in self._forwards for output in forward.outputs]

    def micro_batches(self) -> list[MicroBatch]:
        """Return the parts that the step's batch came in, in the order of the statistics.

        Raises:
            NotMeasured: if the samples could not be counted.
        """
        if self._failure:
            raise NotMeasured(self._failure)
        return [self._micro_batch(group) for group in connected(self._reached)]

    def _micro_batch(self, group: set[int]) -> MicroBatch:
        backwards = [number for number, reached in enumerate(self._reached) if reached & group]
        sizes = {self._forwards[member].batch_size for member in group}
        axes = {self._forwards[member].axis for member in group}
        size = sizes.pop()
        if sizes or size is None or len(axes) > 1:
            raise NotMeasured("the samples of the batch could not be counted")
        return MicroBatch(backwards, size, axes.pop())

    def forget_backwards(self) -> None:
        """Forget the backward passes so far: the user has thrown their gradient away. The forwards stay, one may be under way."""
        for call in self._calls.values():
            call.forget_deltas()
        self._reached = []
        self._calls = {}

    def statistics(
        self,
        products: bool,
        direction: Mapping[str, Tensor] | None = None,
        gradient: Mapping[str, Tensor] | None = None,
        squares: bool = False,
    ) -> PerSampleStatistics:
        """Return the statistics of the step so far; after its last backward.

        Args:
            products: Whether to return inner products with ``direction``.
            direction: Parameter name -> tensor of the parameter's shape; usually the gradient.
            gradient: The gradient that the contributions are checked against. ``None``: ``direction`` is the gradient.
            squares: Whether to return sums of squares.
        """
        if products > self._products or squares > self._squares:
            raise ValueError("the probe was started without")
        if self._failure:
            return PerSampleStatistics(not_covered=dict.fromkeys(self.parameters, self._failure))
        survey = Survey(self.parameters, self._calls.values(), self._forwards, self._reached, self._learned, self._gradients)
        with torch.no_grad(), self.paused():
            found = survey.statistics(products, direction, direction if gradient is None else gradient, squares)
        self._used_again |= survey.used_again
        self._survey = survey
        return found

    def gradients(self, statistics: PerSampleStatistics, scale: Tensor | None = None) -> PerSampleGradients:
        """Return the per-sample gradients that ``statistics``, the last ones, are of; good until the weights change.

        Args:
            statistics: What :meth:`statistics` returned.
            scale: What a gradient scaler multiplied the loss with.

        Raises:
            NotMeasured: if the probe has failed.
        """
        if not self._gradients:
            raise ValueError("the probe was started without")
        if self._survey is None:
            raise NotMeasured(self._failure or "no per-sample gradient was seen on this step")
        return PerSampleGradients(self._survey, self.parameters, list(statistics.squared_norms), self.paused, scale)

    def _failed(self, error: Exception) -> None:
        self.stop()
        self._failure = f"the per-sample probe failed ({type(error).__name__}: {error})"

    def _ignores(self, module: nn.Module) -> bool:
        # a call under vmap or jvp is not the user's step, and its tensors take no hooks
        return self._paused or id(module) not in self._modules or torch._C._functorch.peek_interpreter_stack() is not None

    # hooks ------------------------------------------------------------------------------------------------------------

    @_harmless
    def _before_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._ignores(module):
            return
        if module is self.model:
            self._open.clear()  # an exception in an earlier forward may have left something
        if not self._open and not self._in_backward:
            if module is self.model:
                self._abandon_the_oldest()
            self._forwards.append(Forward(len(self._forwards)))
        self._open.append((id(module), self._begun))
        self._begun += 1
        if module.training and torch.is_grad_enabled() and self._may_repeat(module):
            self._random_states[id(module)] = random_state(next(module.parameters()).device)

    def _may_repeat(self, module: nn.Module) -> bool:
        """Whether the call may have to be repeated with the random numbers that it draws now."""
        if isinstance(module, nn.MultiheadAttention):
            return bool(module.dropout)
        watched = id(module) in self._owners or self._learned.wants(module) or len(self._open) == 1
        return watched and type(module) not in RULES and next(module.parameters(), None) is not None

    def _abandon_the_oldest(self) -> None:
        waiting = [forward for forward in self._forwards if not forward.surveyed]
        if len(waiting) >= MOST_WAITING:
            waiting[0].abandon()

    @_harmless
    def _after_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if self._ignores(module):
            return
        began = -1
        while self._open and began < 0:
            key, number = self._open.pop()
            began = number if key == id(module) else -1
        if not self._forwards:
            return
        forward = self._forwards[-1]
        if torch.is_grad_enabled():
            if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None and has_buffers(self.model):
                forward.recomputes = True
            forward.batch_statistics |= normalises_over_batch(module)
            outermost = not self._open and not self._in_backward
            if id(module) in self._owners or outermost or self._learned.wants(module):
                call = self._watch(module, args, kwargs, output, forward)
                if call is not None:
                    call.began, call.ended = began, self._begun
                forward.whole = call if outermost else None
        if not self._open and not self._in_backward:
            data = first_tensor(args, kwargs)
            forward.data = None if data is None else data.shape
            forward.outputs = [tensor for tensor in tensors_in(output) if _in_graph(tensor) and tensor.is_floating_point()]

    def _watch(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, forward: Forward
    ) -> Call | None:
        tensors = tensors_in(output)
        if not any(map(_in_graph, tensors)):
            return None
        call = Call.of(module, args, kwargs, output, forward.number)
        call.random_state = self._random_states.pop(id(module), None)
        if isinstance(module, nn.MultiheadAttention):
            call.projections = watch_projections(module, tensors[0], self._listening())
        for position, tensor in enumerate(tensors):
            if _in_graph(tensor):
                register_hook_unseen(tensor, self._recorder(call, position))
        if len(tensors) == 1 and self._open and needs_no_output(module):
            call.forget_outputs()
        # a call in the backward pass is recomputed by activation checkpointing, in a graph of its own
        if not self._in_backward and (id(module) in self._owners or self._learned.wants(module)):
            forward.calls.append(call)
            forward.edges.append([get_gradient_edge(tensor) if _in_graph(tensor) else None for tensor in tensors])
        return call

    @_harmless
    def _record(self, call: Call, position: int, delta: Tensor) -> None:
        call.condensed = {}  # a second gradient makes what was measured of the first worthless
        call.add(position, delta)
        self._calls[id(call)] = call
        self._reached[-1].add(call.forward)
        if id(call) in self._alone and not call.spent and not _graph_is_kept():
            self._condense(call)

    def _condense(self, call: Call) -> None:
        batch_size = self._forwards[call.forward].batch_size
        if batch_size is None:
            return
        with torch.no_grad(), torch.autocast(call.outputs[0].device.type, enabled=False), suppress(Exception):
            condense(call, self._trainable, batch_size, self._squares)  # where it fails, the survey fails again and says why

    def _listening(self) -> Callable[[], bool]:
        step = self._step  # a graph that the user keeps may be gone through again in a later step
        return lambda: self._in_backward and not self._paused and step == self._step

    def _recorder(self, call: Call, position: int) -> Callable[[Tensor], None]:
        listening = self._listening()

        def record(delta: Tensor) -> None:
            if listening():
                self._record(call, position, delta)

        return record


def _graph_is_kept() -> bool:
    """Whether the backward pass that is under way may be followed by another one over the same graph."""
    known = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return known is None or known()


def needs_no_output(module: nn.Module) -> bool:
    """Whether the module's rule covers all its parameters without repeating the call."""
    rule = RULES.get(type(module))
    if rule is None or rule.repeats or is_parametrized(module):
        return False
    return all(parameter is None or name in rule.names(module) for name, parameter in module._parameters.items())


def _in_graph(tensor: Tensor) -> bool:
    """Whether the tensor is a result. A hook on a leaf would stay: on a parameter that a module returns, for instance."""
    return tensor.grad_fn is not None


def has_buffers(model: nn.Module) -> bool:
    """Whether recomputing a part of the model might change its state, as batch normalisation's running statistics."""
    return next(iter(model.buffers()), None) is not None
