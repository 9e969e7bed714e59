"""The probe: watches the calls of one training step and what the backward passes send back into them.

Only global module hooks and hooks on output tensors are used, for as long as the step runs. Nothing is set on the user's modules,
parameters or tensors, so a copy, a pickle or a state dict taken in the middle of a step carries nothing of it, and what is
remembered of a call dies with the call's graph unless a backward pass reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.compiler import is_compiling
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.forward_probe import remove_hooks
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes import tensor_hooks
from cockpit_lite.probes.per_sample.around import Learned
from cockpit_lite.probes.per_sample.calls import Call, first_tensor, tensors_in
from cockpit_lite.probes.per_sample.drawing import Drawing
from cockpit_lite.probes.per_sample.early import EarlyMeasurement
from cockpit_lite.probes.per_sample.forwards import Answer, Edge, Forward
from cockpit_lite.probes.per_sample.kernels import statistics_of, watch_kernels
from cockpit_lite.probes.per_sample.layers import PerSampleGradients
from cockpit_lite.probes.per_sample.modules import ModuleTable, Owner
from cockpit_lite.probes.per_sample.owners import normalises_over_batch
from cockpit_lite.probes.per_sample.projections import watch_projections
from cockpit_lite.probes.per_sample.rules.rule import random_state
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics
from cockpit_lite.probes.per_sample.survey import Survey, connected
from cockpit_lite.sharded import any_is_sharded

#: Calls of the model whose graphs are held at a time because a backward pass may come for them all together.
MOST_WAITING = 4

Method = TypeVar("Method", bound=Callable[..., Any])


def _harmless(method: Method) -> Method:
    """Nothing that fails while the user's code runs may reach it: the probe stops and says why no parameter is covered.

    The time is counted, because nobody else sees it.
    """

    @wraps(method)
    def guarded(self: PerSampleProbe, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(self, *args)
        except Exception as error:
            self._failed(error)
            return None
        finally:
            self.seconds += time.perf_counter() - start

    return guarded  # type: ignore[return-value]  # the same signature


class End(NamedTuple):
    """Where a gradient arrives: at an output of a call.

    Attributes:
        edge: Of the graph.
        call: The call.
        position: Of the output among those of the call.
    """

    edge: GradientEdge
    call: Call
    position: int


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

    Attributes:
        seconds: Time that the hooks of the step took inside the user's forward and backward passes.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.model = model
        self.parameters = dict(parameters)
        self._table = ModuleTable(model, self.parameters)
        self._in_shards = any_is_sharded(self.parameters.values())
        if self._in_shards:
            self._table.refresh()
        self._handles: list[RemovableHandle] = []
        self._step = 0  # counts the steps that were watched
        # what holds from step to step: structures of calls, and parameters that were tried in vain
        self._known: dict[tuple[object, ...], Answer] = {}
        self._learned = Learned()
        self._watched = self._table.watched(self._learned.wants)
        self._used_again: set[str] = set()  # names of parameters that were measured too early
        self._products = self._squares = self._gradients = True  # what may be asked for
        self._one_backward = False
        self._directions: Mapping[str, Mapping[str, Tensor]] = {}
        self._drawing: Drawing | None = None
        self._some: int | None = None
        self._reset()

    def _reset(self) -> None:
        self._step += 1
        self.seconds = 0.0
        #: Ids of the modules that are being called and matter, the outermost first, and when they began.
        self._open: list[tuple[int, int]] = []
        self._begun = 0  # counts these calls
        self._forwards: list[Forward] = []
        self._in_backward = False
        self._paused = False
        self._failure = ""
        self._random_states: dict[int, tuple[Tensor, ...]] = {}  # of the modules that are being called
        self._reached: list[set[int]] = []  # forwards that each backward reached
        self._calls: dict[int, Call] = {}  # calls that a backward reached, by id
        self._early: EarlyMeasurement | None = None
        self._survey: Survey | None = None  # that the last statistics came from

    def start(
        self,
        products: bool = True,
        squares: bool = True,
        gradients: bool = False,
        directions: Mapping[str, Mapping[str, Tensor]] | None = None,
        one_backward: bool = False,
        elements: int = 0,
        seed: int = 0,
        some: int | None = None,
    ) -> None:
        """Begin to watch a step. What a layer's statistics need is let go in the backward pass, where all of this allows it.

        Args:
            products: Whether inner products may be asked for.
            squares: Whether sums of squares may be asked for.
            gradients: Whether the gradients themselves may be asked for: nothing is let go then.
            directions: Further directions of inner products by a name of the caller's; each is parameter name -> tensor. They
                come with the statistics.
            one_backward: Whether the step is expected to have one backward pass, and the direction of the products to be the
                gradient that it leaves. If that turns out wrong, the calls around the layers that were let go are repeated
                where they are known, and the layers not covered in this step where they are not.
            elements: How many elements of the contributions to draw; they come with the statistics.
            seed: Other elements are drawn with every other one.
            some: How many samples are enough along ``directions``, at least: of a batch of twice as many every second is then
                looked at, and so on. All if left out.
        """
        self.stop()
        self._products, self._squares, self._gradients = products, squares, gradients
        self._directions, self._one_backward = directions or {}, one_backward
        self._drawing, self._some = None, some
        if elements:
            self._drawing = Drawing(seed, {name: parameter.shape for name, parameter in self.parameters.items()}, elements)
        self._user_hooks = tensor_hooks.registrations()  # they would fire in passes that are not the user's
        if self._table.refresh() or self._learned.changed:
            self._watched = self._table.watched(self._learned.wants)
            self._learned.changed = False
        self._handles = [
            register_module_forward_pre_hook(self._before_call),
            register_module_forward_hook(self._after_call, with_kwargs=True),
        ]

    def stop(self) -> None:
        """Stop watching. May be called twice."""
        remove_hooks(self._handles)
        self._handles = []
        if self._early is not None:
            self._early.stop()
        self._directions = {}  # as large as the weights
        for call in {*self._calls.values(), *(call for forward in self._forwards for call in forward.calls)}:
            call.let_go()
        self._reset()

    @property
    def batch(self) -> tuple[int | None, int]:
        """Number of samples of the last forward, None if not known, and the axis of its input; known once a backward begins."""
        return (self._forwards[-1].batch_size, self._forwards[-1].axis) if self._forwards else (None, 0)

    def backward_begins(self) -> None:
        """From here on output gradients count."""
        before = self.seconds
        self._survey_forwards()
        self.seconds = before  # whoever calls it sees how long it takes

    @_harmless
    def _survey_forwards(self) -> None:
        self._in_backward = False
        with self.paused():
            for forward in self._forwards:
                if not forward.surveyed:
                    ask = tensor_hooks.registrations() == self._user_hooks
                    forward.survey(self._known, ask, self._in_shards)
                    forward.release()
        if self._early is not None:
            self._early.withdraw()
        if not self._gradients and (self._one_backward or not (self._products or self._drawing)):
            self._early = EarlyMeasurement(
                self._forwards,
                self.parameters,
                self._used_again,
                self._squares,
                self._products,
                self._directions,
                self._drawing,
                self._some,
                self._gradient_grew,
            )
        self._reached.append(set())
        self._in_backward = True

    @_harmless
    def backward_ends(self) -> None:
        """From here on they do not: tensor hooks fire again in Hessian-vector products."""
        self._in_backward = False
        if self._early is not None:
            self._early.end()

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

    def structure(self) -> tuple[object, ...] | None:
        """Return what the steps have in common that share out their rows alike, before a backward begins; None: not known."""
        if any(forward.recomputes for forward in self._forwards):
            return None
        return tuple(forward.structure() for forward in self._forwards)

    def ends(self) -> list[End]:
        """Return where the gradients of the calls arrive, in the order of the calls; before a backward begins."""
        return [
            End(edge if isinstance(edge, GradientEdge) else GradientEdge(*edge), call, position)
            for forward in self._forwards
            for call, edges in zip(forward.calls, forward.edges, strict=False)
            for position, edge in enumerate(edges)
            if edge is not None
        ]

    def has_arrived(self, end: End) -> bool:
        """Whether a gradient has arrived at this end."""
        call = end.call
        return id(call) in self._calls and (call.owner is None or bool(call.condensed) or call.deltas[end.position] is not None)

    def arrived(self, end: End, delta: Tensor) -> None:
        """A pass that went no further than this end has brought its gradient: no hook of it was called."""
        if self._in_backward:
            self._record(end.call, end.position, delta)

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
        if self._early is not None:
            self._early.stop()
            self._early = None

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
            gradient: The gradient that the contributions are checked against. ``None``: ``direction`` is the gradient. Of
                sharded parameters nobody knows it: the statistics then come with what is to be checked.
            squares: Whether to return sums of squares.
        """
        if products > self._products or squares > self._squares:
            raise ValueError("the probe was started without")
        if self._failure:
            return PerSampleStatistics(not_covered=dict.fromkeys(self.parameters, self._failure))
        survey = Survey(
            self.parameters,
            self._calls.values(),
            self._forwards,
            self._reached,
            self._learned,
            self._gradients,
            self._drawing,
            self._some,
            self._in_shards,
        )
        with torch.no_grad(), self.paused():
            directions = {"": direction, **self._directions} if products and direction is not None else self._directions
            found = survey.statistics(directions, direction if gradient is None else gradient, squares)
        self._used_again |= survey.used_again
        self._survey = survey
        return found

    def told_apart(self, structure: tuple[object, ...]) -> set[str]:
        """Return the parameters that the last statistics cover by the calls of the modules that own them.

        Args:
            structure: Of the step; if its rows may be shared out in another way next time, no name is returned.
        """
        survey = self._survey
        if survey is None or not survey.sizes or not all(forward in self._known for forward in structure):
            return set()
        return set(self.parameters).difference(survey.not_covered, *(names for _, names in survey.around))

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
        return self._paused or id(module) not in self._table.modules or torch._C._functorch.peek_interpreter_stack() is not None

    # hooks ------------------------------------------------------------------------------------------------------------

    def _before_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if is_compiling():  # a hook that is traced into compiled code must not be there
            return
        if not self._open or id(module) in self._watched.begins or id(module) == self._open[0][0]:
            self._call_begins(module, args)

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if is_compiling():
            return
        if id(module) in self._watched.ends or (self._open and id(module) == self._open[0][0]):
            self._call_ends(module, args, kwargs, output)

    @_harmless
    def _call_begins(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._ignores(module):
            return
        if module is self.model:
            self._open.clear()  # an exception in an earlier forward may have left something
        if not self._open and not self._in_backward:
            if module is self.model:
                self._abandon_the_oldest()
            forward = Forward(len(self._forwards))
            # Lightning's manual optimization under DDP takes the whole step inside of the model's call, whose end comes too late.
            forward.see(first_tensor(args, {}))
            forward.training = module.training and torch.is_grad_enabled()
            self._forwards.append(forward)
        key = id(module)
        self._open.append((key, self._begun))
        self._begun += 1
        if key in self._watched.repeated and module.training and torch.is_grad_enabled() and _draws(module):
            self._random_states[key] = random_state(next(module.parameters()).device)

    def _abandon_the_oldest(self) -> None:
        waiting = [forward for forward in self._forwards if not forward.surveyed]
        if len(waiting) >= MOST_WAITING:
            waiting[0].abandon()

    @_harmless
    def _call_ends(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if self._ignores(module):
            return
        key, watched = id(module), self._watched
        if key in watched.simple and not (self._open and self._open[-1][0] == key):
            began = self._begun  # nobody was told of its beginning: nothing can have happened since
            self._begun += 1
        else:
            began = self._close(key)
        if not self._forwards:
            return
        forward, outermost = self._forwards[-1], not self._open and not self._in_backward
        tensors = tensors_in(output)
        if torch.is_grad_enabled():
            if self._table.has_buffers and torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
                forward.recomputes = True
            if key in watched.norms and normalises_over_batch(module):
                forward.batch_statistics = True
            owner = self._table.owners.get(key)
            call = None
            if owner is not None or outermost or key in watched.around:
                call = self._watch(module, owner, args, kwargs, tensors, forward)
            if call is not None:
                call.began, call.ended = began, self._begun
            if outermost:
                forward.whole = call
        if outermost:
            forward.see(first_tensor(args, kwargs))
            forward.outputs = [tensor for tensor in tensors if tensor.grad_fn is not None and tensor.is_floating_point()]
            forward.training = bool(forward.outputs) and module.training

    def _close(self, key: int) -> int:
        """Close a call and those that an exception has left open within it; return how many had begun before it."""
        while self._open:
            opened, began = self._open.pop()
            if opened == key:
                return began
        return -1

    def _watch(
        self,
        module: nn.Module,
        owner: Owner | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        tensors: list[Tensor],
        forward: Forward,
    ) -> Call | None:
        edges = [_edge(tensor) for tensor in tensors]
        if not any(edges):
            return None
        key = id(module)
        if owner is None and key not in self._watched.around:  # the outermost call, of which earlier steps had no need
            if edges in forward.edges[-1:]:  # it returned what the last call in it did, and that is watched
                return None
            call = Call(module, None, (), {}, tensors, forward.number, keep_outputs=False)
        else:
            keep_outputs = not self._open or owner is None or owner.repeats or len(tensors) > 1
            call = Call(module, owner, args, kwargs, tensors, forward.number, keep_outputs)
            # a call in the backward pass is recomputed by activation checkpointing, in a graph of its own
            if not self._in_backward:
                forward.calls.append(call)
                forward.edges.append(edges)
        if self._random_states:
            call.random_state = self._random_states.pop(key, None)
        if isinstance(module, nn.MultiheadAttention):
            call.projections = watch_projections(module, tensors[0], self._listening())
            if call.projections and self._open:  # they are all that is needed
                call.forget_outputs()
        elif isinstance(module, nn.LSTM):
            call.kernels = watch_kernels(module, tensors[0])
        elif key in self._watched.with_statistics and owner is not None:
            call.statistics = statistics_of(tensors[0])
        for position, edge in enumerate(edges):
            if edge is not None:
                edge[0].register_prehook(partial(self._arrived, call, position, edge[1], self._step))
        return call

    def _listening(self) -> Callable[[], bool]:
        step = self._step  # a graph that the user keeps may be gone through again in a later step
        return lambda: self._in_backward and not self._paused and step == self._step

    def _arrived(self, call: Call, position: int, number: int, step: int, deltas: tuple[Tensor | None, ...]) -> None:
        """Gradients arrive at the node that made an output."""
        if self._in_backward and not self._paused and step == self._step and not is_compiling():
            delta = deltas[number]
            if delta is not None:
                self._record(call, position, delta)

    @_harmless
    def _record(self, call: Call, position: int, delta: Tensor) -> None:
        if call.owner is not None or not call.outputs_forgotten:
            if call.condensed:
                call.condensed = {}  # a second gradient makes what was measured of the first worthless
            call.add(position, delta)
        self._calls[id(call)] = call
        self._reached[-1].add(call.forward)
        if self._early is not None:
            self._early.arrived(call)

    @_harmless
    def _gradient_grew(self, *_: object) -> None:
        if self._early is not None and self._in_backward and not self._paused and not is_compiling():
            self._early.measure()


def _edge(tensor: Tensor) -> Edge | None:
    """Return where the gradient of a result arrives. A hook on a leaf would stay: on a parameter that a module returns, say."""
    node: Any = tensor.grad_fn
    if node is None:
        return None
    # the edge of a function written in Python needs more to keep its graph alive
    return get_gradient_edge(tensor) if isinstance(node, torch._C._FunctionBase) else (node, tensor.output_nr)


def _draws(module: nn.Module) -> bool:
    """Whether a call of the module, which may have to be repeated, may draw random numbers."""
    return bool(module.dropout) if isinstance(module, nn.MultiheadAttention | nn.RNNBase) else True
