"""Remembering how the model was called, so that a second forward pass can repeat it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.modules import module as module_registry
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.obstacles import walk
from cockpit_lite.curvature.second_forward import ForwardCall

logger = logging.getLogger("cockpit_lite")

#: Calls whose inputs and outputs are held at a time.
MOST_CALLS = 4


class ForwardProbe:
    """Watches the calls of a model between :meth:`start` and :meth:`stop`.

    By hooks on all modules at once: nothing is set on the user's model, so a copy of it carries nothing of ours. Only the
    wrapper that ``torch.compile`` makes gets the hooks itself, since PyTorch warns of the others there; a model compiled in
    another way is not watched, since a hook would have it compiled again.

    The last few calls are kept: validation with gradients may come between the call that is trained on and its backward pass.
    """

    def __init__(self, model: nn.Module):
        self._calls: list[ForwardCall] = []
        self._model = model
        self._begun: list[ForwardCall] = []
        self._handles: list[RemovableHandle] = []

    @property
    def call(self) -> ForwardCall | None:
        """The last call that came to its end, or None."""
        return self._calls[-1] if self._calls else None

    def settle(self, loss: Tensor) -> None:
        """Keep only the last call that the loss was made of, and let the others go; without one all stay as they are."""
        if len(self._calls) > 1:
            behind = nodes_behind(loss)
            used = [call for call in self._calls if any(output.grad_fn in behind for output in call.outputs())]
            self._calls = used[-1:] or self._calls

    def start(self) -> None:
        """Watch the calls from now on."""
        self.stop()
        model = self._model
        if is_compiled(model):
            self._handles = [
                model.register_forward_pre_hook(self._before),
                model.register_forward_hook(self._after, with_kwargs=True),
            ]
        elif not has_compiled_parts(model):
            self._handles = [
                register_module_forward_pre_hook(self._before),
                register_module_forward_hook(self._after, with_kwargs=True),
            ]

    def stop(self) -> None:
        """Take the hooks away and forget the call, which holds the model's inputs and outputs. May be called twice."""
        remove_hooks(self._handles)
        self._handles, self._begun, self._calls = [], [], []

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
            self._calls = [*self._calls[1 - MOST_CALLS :], call]
        except Exception as error:
            logger.debug("a call of the model is not watched", exc_info=error)


def nodes_behind(loss: Tensor) -> set[Any]:
    """Return the nodes of the graph that the loss was made by."""
    return set(walk([loss], most=math.inf))


def may_reach(roots: Iterable[Tensor], parameters: Iterable[Tensor]) -> bool:
    """Return whether a backward pass from ``roots`` may reach one of the parameters; if not, it is of somebody else's loss.

    Depth first, so one of them is found soon where there is one. What is behind a function of the user's own cannot be seen.
    """
    wanted = {id(parameter) for parameter in parameters}
    graph = walk(roots, most=math.inf)
    return any(isinstance(node, BackwardCFunction) or id(getattr(node, "variable", None)) in wanted for node in graph)


def is_compiled(module: nn.Module) -> bool:
    """Return whether the module is the wrapper that ``torch.compile`` makes."""
    return type(module).__name__ == "OptimizedModule"  # its import takes seconds


def has_compiled_parts(model: nn.Module) -> bool:
    """Return whether the model or a module in it is compiled, in whichever way: a hook would have it compiled again."""
    return any(is_compiled(module) or module._compiled_call_impl is not None for module in model.modules())


def remove_hooks(handles: Iterable[RemovableHandle]) -> None:
    """Remove hooks on all modules, altogether: PyTorch forgets a part (seen in 2.15), and then warns of hooks that are gone."""
    for handle in handles:
        handle.remove()
        module_registry._global_forward_hooks_with_kwargs.pop(handle.id, None)
