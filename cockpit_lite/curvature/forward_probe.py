"""Remembering how the model was called, so that a second forward pass can repeat it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_registry
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.second_forward import ForwardCall

logger = logging.getLogger("cockpit_lite")


class ForwardProbe:
    """Watches the calls of a model between :meth:`start` and :meth:`stop`.

    By hooks on all modules at once: nothing is set on the user's model, so a copy of it carries nothing of ours. Only the
    wrapper that ``torch.compile`` makes gets the hooks itself, since PyTorch warns of the others there; a model compiled in
    another way is not watched, since a hook would have it compiled again.

    Attributes:
        call: The last call that came to its end, or None.
    """

    def __init__(self, model: nn.Module):
        self.call: ForwardCall | None = None
        self._model = model
        self._begun: list[ForwardCall] = []
        self._handles: list[RemovableHandle] = []

    def start(self) -> None:
        """Watch the calls from now on."""
        self.stop()
        model = self._model
        if is_compiled(model):
            self._handles = [
                model.register_forward_pre_hook(self._before),
                model.register_forward_hook(self._after, with_kwargs=True),
            ]
        elif not any(is_compiled(module) or module._compiled_call_impl is not None for module in model.modules()):
            self._handles = [
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after, with_kwargs=True),
            ]

    def stop(self) -> None:
        """Take the hooks away and forget the call, which holds the model's inputs and outputs. May be called twice."""
        for handle in self._handles:
            handle.remove()
            # PyTorch forgets to (seen in 2.15), and then warns of hooks that are no longer there.
            module_registry._global_forward_hooks_with_kwargs.pop(handle.id, None)
        self._handles, self._begun, self.call = [], [], None

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling() or module is not self._model:
            return
        try:
            self._begun.append(ForwardCall(module))
        except Exception as error:  # this runs inside the user's forward: no failure of ours may reach it
            logger.debug("a call of the model is not watched", exc_info=error)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        # A call that raised leaves an entry behind; the last one begun is the one that ended.
        if torch.compiler.is_compiling() or module is not self._model or not self._begun:
            return
        call = self._begun.pop()
        try:
            call.finish(args, kwargs, output)
            self.call = call
        except Exception as error:
            logger.debug("a call of the model is not watched", exc_info=error)


def is_compiled(module: nn.Module) -> bool:
    """Return whether the module is the wrapper that ``torch.compile`` makes."""
    return type(module).__name__ == "OptimizedModule"  # its import takes seconds
