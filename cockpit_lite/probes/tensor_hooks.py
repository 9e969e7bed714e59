"""Knowing whether the user hooked an inner tensor of the step's graph.

A hook on an activation, or ``retain_grad``, would fire again in every extra pass that we take over the user's graph: a hook would
run twice, a retained gradient would be doubled. Such hooks cannot be found from the graph, so their registration is watched while
a cockpit is open, and no extra pass is taken on a step that has one. Hooks on parameters can be found, and are no concern here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

_watchers = 0
_registrations = 0
_register_hook = torch.Tensor.register_hook
_retain_grad = torch.Tensor.retain_grad


def watch() -> None:
    """Count registrations from now on."""
    global _watchers
    if _watchers == 0:
        torch.Tensor.register_hook = _counting_register_hook  # type: ignore[method-assign]
        torch.Tensor.retain_grad = _counting_retain_grad  # type: ignore[method-assign, assignment]
    _watchers += 1


def stop_watching() -> None:
    """Undo :func:`watch`; the original methods are back when the last watcher leaves."""
    global _watchers
    _watchers -= 1
    if _watchers == 0:
        torch.Tensor.register_hook = _register_hook  # type: ignore[method-assign]
        # It is inherited from the C base class; a copy in torch.Tensor's own dictionary would be a trace.
        del torch.Tensor.retain_grad


def registrations() -> int:
    """Return how many hooks the user has put on inner tensors so far; only differences mean something."""
    return _registrations


def _count(tensor: Tensor) -> None:
    global _registrations
    if not tensor.is_leaf:
        _registrations += 1


def _counting_register_hook(self: Tensor, hook: Callable[[Tensor], Any]) -> RemovableHandle:
    _count(self)
    return _register_hook(self, hook)


def _counting_retain_grad(self: Tensor) -> None:
    _count(self)
    return _retain_grad(self)
