"""Seeing how the model is called, at every step and at the price of one function call.

A hook on the model would be carried by its copies, and one on all modules would slow every one of them down. So the ``__call__``
of the model's class is replaced while a black box is open: it is a plain attribute of the class, and of no instance. Nothing is
computed and nothing copied but buffers that move; the inputs are held until the next backward pass has gone by.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cockpit_lite.black_box.containers import size, tensors
from cockpit_lite.black_box.random_state import RandomStates

logger = logging.getLogger("cockpit_lite")

#: Calls that are held at a time: a loss may be made of several, and validation with gradients may come between.
MOST_CALLS = 8
#: Bytes of inputs that are held beside those of the last call.
MOST_INPUT_BYTES = 256 * 2**20
#: A gradient that the loss sends to an output is held until the pass has gone by if it is not larger, in bytes.
MOST_GRADIENT_BYTES = 16 * 2**20
#: Buffers that change in training (statistics of batch normalisation) are copied before each call if they are not larger.
MOST_BUFFER_BYTES = 4 * 2**20


#: Share of the time that looking at calls closely may cost. A training with shorter steps has some calls noted in short.
_SHARE = 0.002


_functorch_level = torch._C._functorch.peek_interpreter_stack


@dataclass(slots=True)
class Ear:
    """Whether gradients that come back are noted: all that a hook in the user's graph holds of the watch."""

    listening: bool = False


@dataclass(slots=True)
class Call:
    """One call of the model.

    Attributes:
        args: Positional inputs, by reference.
        kwargs: Those by keyword.
        random: States of the generators before it; empty if it was noted in short.
        buffers: Values before it of the buffers that move; None: not known.
        autocast: Device type -> dtype that it ran under.
        versions: Of the input tensors; None if it was noted in short.
        nodes: Numbers of the nodes of the graph that made its outputs; the nodes themselves would hold the graph.
        reached: Whether a backward pass came back to it.
        gradients: What the loss sent back to its outputs; None: nothing, or too much to hold.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: dict[str, Any]
    buffers: dict[str, Tensor] | None
    autocast: dict[str, str]
    versions: list[int] | None = None
    nodes: list[int] = field(default_factory=list)
    reached: bool = False
    gradients: list[Tensor | None] = field(default_factory=list)

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place since."""
        return self.versions is not None and self.versions != _versions(self.args, self.kwargs)


class CallWatch:
    """Holds the last calls of a model that have gradients.

    Args:
        model: The model.
        measuring: Whether a call that is made now is one of ours.

    Attributes:
        resting: While set no call is noted: those inside a backward pass are repetitions.
        closely: Whether the step under way is looked at closely. In short a call's inputs are held, and nothing else.
        held: Calls that were looked at closely and that no backward pass has come back to yet.
    """

    def __init__(self, model: nn.Module, measuring: Callable[[], bool]):
        self.resting = False
        self.closely = True
        self._ear = Ear()
        self._spent = 0.0
        self._not_before = 0.0
        self._model = model
        self._measuring = measuring
        devices = {parameter.device for parameter in model.parameters()}
        self._random = RandomStates(sorted(devices, key=str))
        self._device_types = sorted({device.type for device in devices if device.type != "meta"})
        self.held: list[Call] = []
        self._in_short: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._newer = 0  # calls noted in short since one was looked at closely
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if not buffer.is_meta}
        # Batch normalisation changes its statistics without a change of their version.
        self._unversioned = frozenset(
            f"{name}.{own}" if name else own
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._NormBase)
            for own in module._buffers
        )
        self._copies: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}

    def start(self) -> None:
        """Begin to watch."""
        _watch(self._model, self)

    def stop(self) -> None:
        """Leave no trace; idempotent."""
        _unwatch(self._model, self)
        self.held, self._in_short = [], []

    def take(self) -> list[Call]:
        """Return the calls that the backward pass that has just ended came back to, and forget them."""
        # Of those noted in short nobody looks whether it did.
        found = [*(call for call in self.held if call.reached), *(Call(*given, {}, None, {}) for given in self._in_short)]
        self._newer += len(self._in_short)
        self.held, self._in_short = [call for call in self.held if not call.reached], []
        if self._newer >= MOST_CALLS:  # no backward pass will come back to those: validation, say
            self.held, self._newer = [], 0
        return found

    def forget(self) -> bool:
        """End a step that was fine, of calls noted in short; return whether there were any."""
        found, self._in_short = bool(self._in_short), []
        self.closely = time.perf_counter() >= self._not_before
        return found

    def listen(self, listening: bool) -> None:
        """Note the gradients that come back to the outputs from now on, or no more; calls meanwhile are repetitions."""
        self.resting = self._ear.listening = listening

    def step_ends(self, seconds: float) -> None:
        """Decide how closely the next step is looked at.

        Args:
            seconds: What looking at this one has cost besides the calls.
        """
        now = time.perf_counter()
        if self.closely:
            self._not_before = now + (self._spent + seconds) / _SHARE
        self._spent = 0.0
        self.closely = now >= self._not_before

    @property
    def output_nodes(self) -> set[int]:
        """Numbers of the nodes of the graph that made the outputs of the calls that are held."""
        return {number for call in self.held for number in call.nodes}

    def note_in_short(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the inputs of a call that has been made, on the many steps that are not looked at closely; never raises."""
        if self.resting or not torch.is_grad_enabled() or _functorch_level() is not None:
            return
        if not self._measuring():
            self._in_short.append((args, kwargs))
            if len(self._in_short) > MOST_CALLS:
                del self._in_short[0]

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Note a call that is about to be made; never raises."""
        if self.resting or not torch.is_grad_enabled() or _functorch_level() is not None:
            return None
        try:
            if self._measuring():
                return None
            start = time.perf_counter()
            kinds = [kind for kind in self._device_types if torch.is_autocast_enabled(kind)]
            autocast = {kind: str(torch.get_autocast_dtype(kind)).removeprefix("torch.") for kind in kinds}
            call = Call(args, kwargs, self._random.take(), self._moving_buffers(), autocast, _versions(args, kwargs))
            self._spent += time.perf_counter() - start
            return call
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            logger.debug("a call of the model is not kept", exc_info=error)
            return None

    def end(self, call: Call, output: Any) -> None:
        """The call has been made; never raises."""
        start = time.perf_counter()
        try:
            outputs = tensors(output)
            call.gradients = [None] * len(outputs)
            for position, tensor in enumerate(outputs):
                if tensor.grad_fn is not None:
                    call.nodes.append(tensor.grad_fn._sequence_nr())
                    tensor.grad_fn.register_prehook(self._marker(call, position, tensor.output_nr))
            self.held = [*self.held[1 - MOST_CALLS :], call]
            self._newer = 0
            while len(self.held) > 1 and size([(call.args, call.kwargs) for call in self.held[:-1]]) > MOST_INPUT_BYTES:
                del self.held[0]
            self._spent += time.perf_counter() - start
        except Exception as error:
            logger.debug("a call of the model is not kept", exc_info=error)

    def _marker(self, call: Call, position: int, number: int) -> Callable[[Any], None]:
        ear = self._ear

        def mark(gradients: Any) -> None:
            if ear.listening:
                call.reached = True
                gradient = gradients[number]
                small = gradient is not None and gradient.numel() * gradient.element_size() <= MOST_GRADIENT_BYTES
                call.gradients[position] = gradient if small else None

        return mark

    def _moving_buffers(self) -> dict[str, Tensor] | None:
        """Return copies of the buffers that have ever changed; None if they are too large for that."""
        if not self._buffers:
            return {}
        versions = {name: buffer._version for name, buffer in self._buffers.items()}
        if not self._versions:
            moved = list(self._buffers)  # nobody knows yet which will move
            if size(list(self._buffers.values())) > MOST_BUFFER_BYTES:
                moved = list(self._unversioned)
        else:
            moved = [name for name, version in versions.items() if version != self._versions[name] or name in self._unversioned]
        if size([self._buffers[name] for name in moved]) > MOST_BUFFER_BYTES:
            return None
        with torch.no_grad():
            self._copies = {**self._copies, **{name: self._buffers[name].clone() for name in moved}}
        self._versions = versions
        return self._copies


def _versions(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[int]:
    given = tensors((args, kwargs) if kwargs else args)
    return [0 if tensor.is_inference() else tensor._version for tensor in given]


#: Those that watch, by the model's identity; and what a class had for a ``__call__`` of its own, if it had one.
_watchers: dict[int, tuple[CallWatch, ...]] = {}
_replaced: dict[type[nn.Module], tuple[int, Any]] = {}
_NOTHING = object()


def _watch(model: nn.Module, watch: CallWatch) -> None:
    kind = type(model)
    _watchers[id(model)] = (*_watchers.get(id(model), ()), watch)
    count, own = _replaced.get(kind, (0, _NOTHING))
    if not count:
        own = vars(kind).get("__call__", _NOTHING)
        kind.__call__ = _watched_call(kind, own)  # type: ignore[method-assign]
    _replaced[kind] = (count + 1, own)


def _unwatch(model: nn.Module, watch: CallWatch) -> None:
    watches = _watchers.get(id(model), ())
    if watch not in watches:
        return
    left = tuple(other for other in watches if other is not watch)
    if left:
        _watchers[id(model)] = left
    else:
        del _watchers[id(model)]
    kind = type(model)
    count, own = _replaced[kind]
    if count > 1:
        _replaced[kind] = (count - 1, own)
        return
    del _replaced[kind]
    if own is _NOTHING:
        del kind.__call__
    else:
        kind.__call__ = own  # type: ignore[method-assign]


def _watched_call(kind: type[nn.Module], own: Any) -> Callable[..., Any]:
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        original = super(kind, self).__call__ if own is _NOTHING else own.__get__(self, type(self))  # type: ignore[misc]
        # Of a class and its parent both may be watched: only the outermost call is noted.
        if torch.compiler.is_compiling() or type(self) is not kind or (watches := _watchers.get(id(self))) is None:
            return original(*args, **kwargs)
        if len(watches) == 1 and not watches[0].closely:
            output = original(*args, **kwargs)
            watches[0].note_in_short(args, kwargs)
            return output
        begun = [(watch, call) for watch in watches if (call := watch.begin(args, kwargs)) is not None]
        output = original(*args, **kwargs)
        for watch, call in begun:
            watch.end(call, output)
        return output

    return __call__
