"""The masks of dropout in a call: recorded while it is repeated as it was, then given to the samples one by one.

On a CPU all dropout, that of attention included, is a tensor that ``bernoulli_`` fills, or a new one where a call is vectorised.
Whether every sample got its own part again shows in what the call returns: whoever uses the masks compares that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_DRAW = torch.ops.aten.bernoulli_.float
_DRAWN_ANEW = torch.ops.aten.bernoulli.p


class RecordedMasks(TorchDispatchMode):
    """While entered, records what is drawn; the call is that of all samples.

    Attributes:
        masks: What was drawn, in order: ones, and zeros where something is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Let everything happen, and copy what is drawn."""
        found = func(*args, **(kwargs or {}))
        if func is _DRAW:
            self.masks.append(found.detach().clone())
        return found


class MasksBySample(TorchDispatchMode):
    """While entered, uses what was recorded instead of drawing; the call is vectorised over some samples.

    Args:
        masks: What was recorded, in order.
        count: Number of samples.
        axis: The axis of a mask that holds them; where it has another number of entries, the first, which has a multiple.
        chosen: The samples that the call is of.
    """

    def __init__(self, masks: list[Tensor], count: int, axis: int, chosen: slice) -> None:
        super().__init__()
        self._left = iter(masks)
        self._count, self._axis, self._chosen = count, axis, chosen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Use the next mask where something is drawn."""
        if func is _DRAW:
            return args[0].copy_(self._next(args[0].shape))
        if func is _DRAWN_ANEW:
            return self._next(args[0].shape).to(args[0].dtype, copy=True)  # which is then changed in place
        return func(*args, **(kwargs or {}))

    def _next(self, shape: torch.Size) -> Tensor:
        mask = next(self._left)
        if mask.dim() > self._axis and mask.shape[self._axis] == self._count:
            mask = mask.movedim(self._axis, 0)
        return mask.reshape(self._count, -1)[self._chosen].reshape(shape)
