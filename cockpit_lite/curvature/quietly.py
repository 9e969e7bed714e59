"""Extra passes over the user's graph that leave no trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor


@contextmanager
def quietly(parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> Iterator[None]:
    """Run autograd passes so that the user's training cannot tell.

    Hooks on the parameters do not fire: they count or clip the training's own gradients, and curvature is that of the
    loss. Autocast is off, so that a backward inside an autocast block is not rounded a second time. Activation checkpoints
    recompute parts of the forward during a backward pass and may draw random numbers or move the statistics of batch norm:
    the generators' states and the buffers are put back.
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
