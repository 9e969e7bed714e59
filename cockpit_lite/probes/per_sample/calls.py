"""What the probe remembers of one call of one module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map


def _cut(value: Any) -> Any:
    """Detach a tensor: what the probe keeps must not keep the user's graph alive."""
    return value.detach() if isinstance(value, Tensor) else value


@dataclass(eq=False)
class Call:
    """One call of a module that owns trainable parameters.

    Attributes:
        module: The module.
        args: Positional arguments, detached.
        kwargs: Keyword arguments, detached.
        outputs: The tensors it returned, detached, in the order of ``tree_flatten``.
        forward: Number of the forward (outermost call) it belongs to.
        deltas: Gradient of the loss with respect to each output; ``None`` where nothing arrived.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: list[Tensor]
    forward: int
    deltas: list[Tensor | None] = field(default_factory=list)
    _versions: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, forward: int) -> Call:
        """Remember a call that has just returned."""
        outputs = [value.detach() for value in tree_flatten(output)[0] if isinstance(value, Tensor)]
        call = cls(module, tree_map(_cut, args), tree_map(_cut, dict(kwargs)), outputs, forward, [None] * len(outputs))
        call._versions = call._now()
        return call

    def _now(self) -> tuple[int, ...]:
        # detached aliases share the version counter with the user's tensors
        return tuple(value._version for value in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Return all tensors among the arguments."""
        return [value for value in tree_flatten((self.args, self.kwargs))[0] if isinstance(value, Tensor)]

    @property
    def overwritten(self) -> bool:
        """Whether an argument was changed in place after the call."""
        return self._versions != self._now()

    def add(self, position: int, delta: Tensor) -> None:
        """Add an output gradient; several losses may be taken back through one call."""
        known = self.deltas[position]
        self.deltas[position] = delta.detach() if known is None else known + delta.detach()

    def bound(self) -> list[Any]:
        """Return the arguments in the order of the signature of ``forward``."""
        if not self.kwargs:
            return list(self.args)
        signature = inspect.signature(self.module.forward).bind(*self.args, **self.kwargs)
        signature.apply_defaults()
        return list(signature.arguments.values())


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the first tensor among the arguments that has an axis, or None."""
    for value in tree_flatten((args, dict(kwargs)))[0]:
        if isinstance(value, Tensor) and value.dim() > 0:
            return value
    return None
