"""Seeing every ``loss.backward()`` without a change to the user's loop.

``Tensor.backward`` looks ``torch.autograd.backward`` up at each call, so replacing that one function while a cockpit is
open shows us every backward pass: of functional, composite and model-owned losses, of gradient scalers and of
accumulation alike. The original is put back when the last listener leaves.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured


class BackwardListener(Protocol):
    """Who wants to know. What it raises does not reach the user: it is handed back to ``give_up``."""

    def before_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Called with the roots and the gradients they are seeded with; the graph is still there."""

    def after_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Called after the gradients were accumulated; not if the user's backward raised."""

    def give_up(self, error: Exception) -> None:
        """Called with what one of the others raised; must not raise."""


@dataclass(slots=True)
class _Thread:
    """One thread that is listened to, and whether it is inside a backward pass."""

    listeners: tuple[BackwardListener, ...] = ()
    within: bool = False


#: By the thread that each is interested in: another thread may train another model.
_listeners: dict[int, _Thread] = {}
_original: Callable[..., Any] | None = None
_NO_SEED = (None,)


def listen(listener: BackwardListener) -> None:
    """Tell ``listener`` of every backward pass of this thread from now on."""
    global _original
    if not _listeners:
        _original = torch.autograd.backward
        torch.autograd.backward = _intercept(_original)
    thread = _listeners.setdefault(threading.get_ident(), _Thread())
    thread.listeners = (*thread.listeners, listener)


def stop_listening(listener: BackwardListener) -> None:
    """Undo :func:`listen`."""
    global _original
    for number, thread in tuple(_listeners.items()):
        thread.listeners = tuple(other for other in thread.listeners if other is not listener)
        if not thread.listeners:
            del _listeners[number]
    if not _listeners and _original is not None:
        # Somebody else may have wrapped our wrapper meanwhile: then it must stay, and passes through.
        if getattr(torch.autograd.backward, "_cockpit_lite", False):
            torch.autograd.backward = _original
        _original = None


def _intercept(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        thread = _listeners.get(threading.get_ident())
        # Re-entrant activation checkpointing calls backward inside backward: that is not a new root.
        if thread is None or thread.within:
            return original(tensors, grad_tensors, *args, **kwargs)
        interested, thread.within = thread.listeners, True
        try:
            # Nearly always there is one, and no seed.
            one = grad_tensors is None and isinstance(tensors, Tensor)
            roots, seeds = ((tensors,), _NO_SEED) if one else _roots_and_seeds(tensors, grad_tensors)
            for listener in interested:
                try:
                    listener.before_backward(roots, seeds)
                except Exception as error:
                    listener.give_up(error)
            result = original(tensors, grad_tensors, *args, **kwargs)
            for listener in interested:
                try:
                    listener.after_backward(roots, seeds)
                except Exception as error:
                    listener.give_up(error)
            return result
        finally:
            thread.within = False

    backward._cockpit_lite = True  # type: ignore[attr-defined]
    return backward


def _roots_and_seeds(tensors: Any, gradients: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    roots = _as_sequence(tensors)
    return roots, (None,) * len(roots) if gradients is None else _as_sequence(gradients) or (None,) * len(roots)


def _as_sequence(value: Any) -> tuple[Any, ...]:
    # Only lists and tuples can be looked at twice; a GradientEdge is no tensor.
    if isinstance(value, Tensor):
        return (value,)
    return tuple(value) if isinstance(value, (list, tuple)) else ()


def objective(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None], detach: bool = True) -> Tensor:
    """Return the scalar that a backward pass differentiates: the sum of its roots, weighted with their seeds.

    Raises:
        NotMeasured: if no root is a tensor.
    """
    total: Tensor | None = None
    for position, root in enumerate(tensors):
        seed = gradients[position] if position < len(gradients) else None
        value = root.detach() if detach else root
        if seed is not None:
            value = (value * seed).sum()
        elif value.dim():
            value = value.sum()  # one element: backward() allows no other root without a seed
        total = value if total is None else total + value
    if total is None:
        raise NotMeasured("the root of the backward pass is no tensor")
    return total
