"""The probe: watches the calls of one training step and what the backward passes send back into them.

Only global module hooks and hooks on output tensors are used, for as long as the step runs. Nothing is set on the user's modules,
parameters or tensors, so a copy, a pickle or a state dict taken in the middle of a step carries nothing of it, and what is
remembered of a call dies with the call's graph unless a backward pass reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

from cockpit_lite.probes.per_sample.calls import Call, first_tensor
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics
from cockpit_lite.probes.per_sample.survey import Survey


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
        self._handles: list[RemovableHandle] = []
        self._reset()

    def _reset(self) -> None:
        self._modules: dict[int, nn.Module] = {}
        self._owners: set[int] = set()
        self._open: list[int] = []  # ids of the modules that are being called, outermost first
        self._batch_sizes: list[int | None] = []  # of every forward
        self._backward = -1
        self._in_backward = False
        self._reached: list[set[int]] = []  # forwards that each backward reached
        self._calls: dict[int, Call] = {}  # calls that a backward reached, by id
        self._batch_statistics = False

    def start(self) -> None:
        """Begin to watch a step."""
        self.stop()
        self._reset()
        trainable = {id(parameter) for parameter in self.parameters.values()}
        self._modules = {id(module): module for module in self.model.modules()}
        self._owners = {
            key
            for key, module in self._modules.items()
            if any(id(parameter) in trainable for parameter in module._parameters.values())
        }
        self._handles = [
            register_module_forward_pre_hook(self._before_call),
            register_module_forward_hook(self._after_call, with_kwargs=True),
        ]

    def stop(self) -> None:
        """Stop watching. May be called twice."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def backward_begins(self) -> None:
        """From here on output gradients count."""
        self._backward += 1
        self._reached.append(set())
        self._in_backward = True

    def backward_ends(self) -> None:
        """From here on they do not: tensor hooks fire again in Hessian-vector products."""
        self._in_backward = False

    def statistics(
        self,
        products: bool,
        direction: Mapping[str, Tensor] | None = None,
        gradient: Mapping[str, Tensor] | None = None,
    ) -> PerSampleStatistics:
        """Return the statistics of the step so far; after its last backward.

        Args:
            products: Whether to return inner products with ``direction``.
            direction: Parameter name -> tensor of the parameter's shape; usually the gradient.
            gradient: The gradient that the contributions are checked against. ``None``: ``direction`` is the gradient.
        """
        survey = Survey(
            self.parameters, self._calls.values(), self._batch_sizes, self._reached, batch_statistics=self._batch_statistics
        )
        with torch.no_grad():
            return survey.statistics(products, direction, direction if gradient is None else gradient)

    # hooks ------------------------------------------------------------------------------------------------------------

    def _before_call(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if id(module) not in self._modules:
            return
        if module is self.model:
            self._open.clear()  # an exception in an earlier forward may have left something
        self._open.append(id(module))

    def _after_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if id(module) not in self._modules:
            return
        while self._open and self._open.pop() != id(module):
            pass
        outermost = not self._open and not self._in_backward
        number = len(self._batch_sizes)
        if self._in_backward:  # recomputed by activation checkpointing: it belongs to the forward before
            number -= 1
        if torch.is_grad_enabled():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                self._batch_statistics = True
            if id(module) in self._owners:
                self._watch(Call.of(module, args, kwargs, output, number), output)
        if outermost:
            data = first_tensor(args, kwargs)
            self._batch_sizes.append(None if data is None else data.shape[0])

    def _watch(self, call: Call, output: Any) -> None:
        tensors = [value for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
        for position, tensor in enumerate(tensors):
            if tensor.requires_grad:
                tensor.register_hook(self._recorder(call, position))

    def _recorder(self, call: Call, position: int) -> Callable[[Tensor], None]:
        def record(delta: Tensor) -> None:
            if self._in_backward:
                call.add(position, delta)
                self._calls[id(call)] = call
                self._reached[self._backward].add(call.forward)

        return record
