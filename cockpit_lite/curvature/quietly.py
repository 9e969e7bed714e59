"""Extra passes over the user's graph that leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_registry


@contextmanager
def quietly(parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> Iterator[None]:
    """Run autograd passes so that the user's training cannot tell.

    Hooks on the parameters do not fire: they count or clip the training's own gradients, and curvature is that of the
    loss. Autocast is off, so that a backward inside an autocast block is not rounded a second time. Activation checkpoints
    recompute parts of the forward during a backward pass: what they draw of random numbers and move of the statistics of
    batch norm is put back, and our own probes do not see them.
    """
    parameters, buffers = list(parameters), list(buffers)
    devices = {parameter.device for parameter in parameters}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    saved_buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
    saved_hooks = [(hooks, dict(hooks)) for parameter in parameters if (hooks := parameter._backward_hooks)]
    with ExitStack() as stack:
        accelerator = accelerators[0].type if accelerators else "cuda"
        stack.enter_context(torch.random.fork_rng(accelerators, device_type=accelerator))
        for device_type in {device.type for device in devices}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(own_hooks_resting([None]))
        try:
            for hooks, _ in saved_hooks:
                hooks.clear()
            yield
        finally:
            for hooks, saved in saved_hooks:
                hooks.update(saved)
            for buffer, saved_buffer in saved_buffers:
                # .data: the graph may have saved the buffer, and its version must not move.
                buffer.data.copy_(saved_buffer)


class Undisturbed:
    """:func:`quietly` for one model, entered once however many passes are nested in it: each entry costs as much as a small pass.

    Args:
        parameters: Whose hooks must not fire.
        model: Whose buffers are kept safe.
    """

    def __init__(self, parameters: Sequence[Tensor], model: nn.Module | None):
        self._parameters, self._model = parameters, model
        self._entered = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._entered:
            yield
            return
        with quietly(self._parameters, self._model.buffers() if self._model is not None else ()):
            self._entered = True
            try:
                yield
            finally:
                self._entered = False


@contextmanager
def own_hooks_resting(modules: Iterable[nn.Module | None]) -> Iterator[None]:
    """Let our own forward hooks on ``modules`` (None: on all modules at once) do nothing for a while.

    They keep their places: what another thread adds or removes meanwhile stays added or removed.
    """
    rested: list[tuple[dict[int, Callable[..., Any]], int, Callable[..., Any]]] = []
    try:
        for module in modules:
            for hooks in forward_hooks(module):
                for key, hook in tuple(hooks.items()):
                    if package(hook) == "cockpit_lite" and hook is not _rest:
                        hooks[key] = _rest
                        rested.append((hooks, key, hook))
        yield
    finally:
        for hooks, key, hook in rested:
            if key in hooks:
                hooks[key] = hook


def _rest(*arguments: Any, **options: Any) -> None:
    """Stand in for a hook of ours."""


def forward_hooks(module: nn.Module | None) -> tuple[dict[int, Callable[..., Any]], ...]:
    """Return the dictionaries that hold the forward hooks of a module, or for None those of all modules."""
    if module is None:
        return module_registry._global_forward_pre_hooks, module_registry._global_forward_hooks
    return module._forward_pre_hooks, module._forward_hooks


def package(hook: Callable[..., Any]) -> str:
    """Return the top-level package that a hook was written in."""
    while hasattr(hook, "func"):  # functools.partial
        hook = hook.func
    module: str | None = getattr(hook, "__module__", None)
    return (module or type(hook).__module__).split(".")[0]
