"""Remembering how the model was called, so that a second forward pass can repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from cockpit_lite.curvature.second_forward import ForwardCall


class ForwardProbe:
    """Two hooks on the model itself, there between :meth:`start` and :meth:`stop` only.

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
        self._handles = [
            self._model.register_forward_pre_hook(self._before, with_kwargs=True),
            self._model.register_forward_hook(self._after),
        ]

    def stop(self) -> None:
        """Take the hooks away and forget the call, which holds the model's inputs and outputs."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._begun, self.call = [], [], None

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._begun.append(ForwardCall(module, args, kwargs))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # A call that raised leaves an entry behind; the last one begun is the one that ended.
        if self._begun:
            self.call = self._begun.pop()
            self.call.output = output
