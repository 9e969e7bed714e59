"""What the probe remembers of one call of one module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

if TYPE_CHECKING:
    from cockpit_lite.probes.per_sample.forms import Condensed
    from cockpit_lite.probes.per_sample.modules import Owner
    from cockpit_lite.probes.per_sample.owners import Layout
    from cockpit_lite.probes.per_sample.projections import Projection


def _cut(value: Any) -> Any:
    """Detach a tensor: what the probe keeps must not keep the user's graph alive."""
    return value.detach() if isinstance(value, Tensor) else value


@lru_cache(maxsize=1024)
def _without_memory(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty((), dtype=dtype, device=device).expand(shape)


@dataclass(eq=False, slots=True)
class Call:
    """One call of a module that owns trainable parameters, or of the model.

    Attributes:
        module: The module.
        owner: What is known of it from step to step; ``None`` if it uses no trainable parameter by itself.
        args: Positional arguments, detached.
        kwargs: Keyword arguments, detached.
        outputs: The tensors it returned, detached, in the order of ``tree_flatten``; once they are forgotten, tensors of the same
            shapes without memory.
        forward: Number of the forward (outermost call) it belongs to.
        autocast: The type that automatic mixed precision calculated in; ``None`` without it.
        layout: Where the samples are in it, once that is known.
        random_state: Of the random number generators before the call, for modules whose rule draws them again.
        projections: What could be read off the graph of an attention.
        began: How many calls the step had begun before this one.
        ended: How many it had begun when this one ended.
        deltas: Gradient of the loss with respect to each output; ``None`` where nothing arrived.
        condensed: Name in the module -> what is left once it was measured and the rest let go; empty before.
        spent: Whether the arguments were let go.
        noise: Magnitude of the terms that the gradient is a sum of, once condensed.
    """

    module: nn.Module
    owner: Owner | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: list[Tensor]
    forward: int
    deltas: list[Tensor | None] = field(default_factory=list)
    autocast: torch.dtype | None = None
    layout: Layout | None = None
    random_state: tuple[Tensor, ...] | None = None
    projections: dict[str, Projection] = field(default_factory=dict)
    began: int = 0
    ended: int = 0
    outputs_forgotten: bool = False
    spent: bool = False
    condensed: dict[str, Condensed] = field(default_factory=dict)
    noise: Tensor | float | None = None
    _versions: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        module: nn.Module,
        owner: Owner | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Any,
        forward: int,
        keep_outputs: bool = True,
    ) -> Call:
        """Remember a call that has just returned; without ``keep_outputs`` only the shapes of what it returned."""
        outputs = tensors_in(output)
        if keep_outputs:
            outputs = [value.detach() for value in outputs]
        else:
            outputs = [_without_memory(value.shape, value.dtype, value.device) for value in outputs]
        args = tuple([value.detach() if isinstance(value, Tensor) else tree_map(_cut, value) for value in args])
        call = cls(module, owner, args, tree_map(_cut, dict(kwargs)) if kwargs else {}, outputs, forward, [None] * len(outputs))
        device = outputs[0].device.type if outputs else "cpu"
        call.autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        call.outputs_forgotten = not keep_outputs
        call._versions = call._now()
        return call

    def _now(self) -> tuple[int, ...]:
        # detached aliases share the version counter with the user's tensors
        kept = [] if self.outputs_forgotten else self.outputs
        return tuple([value._version for value in [*self.tensors(), *kept]])

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the arguments."""
        return tensors_in((self.args, self.kwargs)) if self.kwargs else tensors_in(self.args)

    @property
    def overwritten(self) -> bool:
        """Whether an argument was changed in place after the call."""
        return any(value._version != before for value, before in zip(self.tensors(), self._versions, strict=False))

    @property
    def outputs_overwritten(self) -> bool:
        """Whether an output was changed in place after the call, as activations with ``inplace=True`` do; or was not kept."""
        if self.outputs_forgotten:
            return True
        count = len(self.tensors())
        return self._versions[count:] != self._now()[count:]

    def add(self, position: int, delta: Tensor) -> None:
        """Add an output gradient; several losses may be taken back through one call."""
        known = self.deltas[position]
        self.deltas[position] = delta.detach() if known is None else known + delta.detach()

    def forget_outputs(self) -> None:
        """Let the outputs go, which the user's graph may not need: only their shapes are kept."""
        self.outputs = [_without_memory(output.shape, output.dtype, output.device) for output in self.outputs]
        self.outputs_forgotten = True

    def condense(self, forms: dict[str, Condensed]) -> None:
        """Keep the condensed forms, and let go of what they were made of."""
        self.condensed, self.noise = forms, self.magnitude()
        self.args, self.kwargs, self.spent = (), {}, True
        if not self.outputs_forgotten:
            self.forget_outputs()
        self.deltas = [None] * len(self.deltas)

    def magnitude(self) -> Tensor | float:
        """Return a bound of the terms that the gradients of the parameters are sums of."""
        if self.noise is not None:
            return self.noise
        deltas = sum(delta.abs().sum() for delta in self.deltas if delta is not None)
        limits = [torch.aminmax(t) for t in self.tensors() if t.is_floating_point() and t.numel()]
        largest = [torch.maximum(-low, high) for low, high in limits]  # cheaper than the greatest absolute value
        return deltas * (torch.stack(largest).max().clamp(min=1) if largest else 1.0)

    def forget_deltas(self) -> None:
        """Forget the gradients that arrived: the user has thrown them away."""
        self.condensed, self.noise = {}, None
        self.deltas = [None] * len(self.deltas)
        for projection in self.projections.values():
            projection.delta = None

    @property
    def half_precision(self) -> bool:
        """Whether anything in it was calculated in less than single precision."""
        return self.autocast is not None or any(output.dtype in (torch.float16, torch.bfloat16) for output in self.outputs)

    def bound(self) -> list[Any]:
        """Return the arguments in the order of the signature of ``forward``."""
        if not self.kwargs:
            return list(self.args)
        signature = inspect.signature(self.module.forward).bind(*self.args, **self.kwargs)
        signature.apply_defaults()
        return list(signature.arguments.values())


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor among the arguments that has an axis, or None."""
    found = tensors_in((args, dict(kwargs))) if kwargs else tensors_in(args)
    return next((tensor for tensor in found if tensor.dim() > 0), None)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in a nest of tuples, lists and dictionaries, and in what Hugging Face models return."""
    if isinstance(value, Tensor):  # nearly always, and tree_flatten takes its time
        return [value]
    if type(value) in (tuple, list) and all(isinstance(leaf, Tensor) for leaf in value):
        return list(value)
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
