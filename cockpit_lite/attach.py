"""Attach: finds the models that a script trains, as they are called for the first time.

The script is not changed and tells nothing. What is seen: every optimizer that is made, and the first call, with gradients
enabled, of a module that holds parameters of one of them. At that moment, before the call, the cockpits are opened.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cockpit_lite.isolation import warn

#: Called with a model and its optimizers when they are about to train.
Opener = Callable[[nn.Module, list[Optimizer]], None]


class Attachment:
    """Tells ``begin`` and ``opened`` of every model that is about to be trained, between :meth:`start` and :meth:`stop`.

    Args:
        opened: Called for each model that new optimizers train, before its first call.
        begin: Called before the first of them: what trained until now has probably ended.
    """

    def __init__(self, opened: Opener, begin: Callable[[], None] = lambda: None):
        self._opened = opened
        self._begin = begin
        self._waiting: list[weakref.ref[Optimizer]] = []
        self._make: Callable[..., None] | None = None
        self._call: Callable[..., Any] | None = None

    def start(self) -> None:
        """Begin to look."""
        make = self._make = Optimizer.__init__

        @functools.wraps(make)
        def noted(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            make(optimizer, *args, **kwargs)
            self._waiting.append(weakref.ref(optimizer))
            self._watch_calls()

        Optimizer.__init__ = noted  # type: ignore[method-assign, assignment]

    def stop(self) -> None:
        """Put everything back; idempotent."""
        self._unwatch_calls()
        if self._make is not None:
            Optimizer.__init__ = self._make  # type: ignore[method-assign]
            self._make = None

    def _watch_calls(self) -> None:
        if self._call is not None:
            return
        call = self._call = nn.Module.__call__

        @functools.wraps(call)
        def watched(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            # A model that is compiled now keeps this function for good, and must find nothing in it.
            if not torch.compiler.is_compiling() and self._call is not None and torch.is_grad_enabled():
                try:
                    self._called(module)
                except Exception as error:  # the script goes on as if nobody had looked
                    self._unwatch_calls()
                    warn("The models of this script could not be found; it goes on unwatched.", error)
            return call(module, *args, **kwargs)

        nn.Module.__call__ = watched  # type: ignore[method-assign]

    def _unwatch_calls(self) -> None:
        if self._call is not None:
            nn.Module.__call__ = self._call  # type: ignore[method-assign]
            self._call = None

    def _called(self, module: nn.Module) -> None:
        optimizers = [optimizer for reference in self._waiting if (optimizer := reference()) is not None]
        wanted = set().union(*map(_parameters_of, optimizers))
        if not any(id(parameter) in wanted for parameter in module.parameters()):
            return
        self._waiting.clear()
        self._unwatch_calls()
        self._begin()
        for model, its_optimizers in find_models(module, optimizers):
            self._opened(model, its_optimizers)


def find_models(called: nn.Module, optimizers: Sequence[Optimizer]) -> list[tuple[nn.Module, list[Optimizer]]]:
    """Return the models that the optimizers train, each with its optimizers.

    A model is the called module where it holds all parameters of an optimizer, else the smallest module that does, else a
    container of the outermost ones that hold them between them (an encoder and a decoder that nobody holds together).

    Args:
        called: The module that is called.
        optimizers: Optimizers without a model so far.
    """
    found: list[tuple[nn.Module, list[Optimizer]]] = []
    for optimizer in optimizers:
        model = _model_of(_parameters_of(optimizer), called)
        if model is None:
            continue
        inside = {id(module) for module in model.modules()}
        for position, (other, others) in enumerate(found):  # one of the two may be a part of the other
            if id(other) in inside or any(module is model for module in other.modules()):
                found[position] = (model if id(other) in inside else other, [*others, optimizer])
                break
        else:
            found.append((model, [optimizer]))
    return found


def _model_of(wanted: set[int], called: nn.Module) -> nn.Module | None:
    if wanted <= _held(called):
        return called
    # Looked up once a training: nobody else knows which modules there are.
    alive = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]
    owners = [(module, held) for module in alive if (held := _held(module)) & wanted]
    whole = [(module, held) for module, held in owners if wanted <= held]
    if whole:
        return min(whole, key=lambda owner: len(owner[1]))[0]
    left, parts = set(wanted), []
    for module, held in sorted(owners, key=lambda owner: (-len(owner[1] & wanted), len(owner[1]))):
        if held & left:
            parts.append(module)
            left -= held
    if len(parts) < 2:
        return parts[0] if parts else None
    return nn.ModuleDict(_named(parts))


def _named(modules: Iterable[nn.Module]) -> dict[str, nn.Module]:
    named: dict[str, nn.Module] = {}
    for module in modules:
        name = type(module).__name__.lower()
        while name in named or hasattr(nn.ModuleDict, name):
            name += "_"
        named[name] = module
    return named


def _held(module: nn.Module) -> set[int]:
    try:
        return {id(parameter) for parameter in module.parameters()}
    except Exception:  # a module that was never initialised, or one of those that answer for another
        return set()


def _parameters_of(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
