"""Knowing what a gradient scaler multiplied the loss with, so that readings are in unscaled units.

``scaler.scale(loss)`` is the only place where loss and factor meet; it is watched while a cockpit is open.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.optim import Optimizer

#: How often a loss was scaled so far; only differences mean something. It is asked for at every step, so it is no function.
uses = 0

_watchers = 0
_original = GradScaler.scale
_last: list[tuple[GradScaler, Tensor]] = []


def watch() -> None:
    """Note the factors from now on."""
    global _watchers
    if _watchers == 0:
        GradScaler.scale = _noting_scale  # type: ignore[method-assign]
    _watchers += 1


def stop_watching() -> None:
    """Undo :func:`watch`."""
    global _watchers
    _watchers -= 1
    if _watchers == 0:
        GradScaler.scale = _original  # type: ignore[method-assign]
        _last.clear()


def last_scale() -> Tensor | None:
    """Return the factor that was used last, on its device and without waiting for it."""
    return _last[0][1] if _last else None


def is_unscaled(optimizer: Optimizer) -> bool:
    """Return whether the scaler has divided the gradients of ``optimizer`` by its factor already.

    ``unscale_`` does not move the version counters of the gradients, so only the scaler's own books tell. Fused
    optimizers get scaled gradients and unscale them by themselves.
    """
    if not _last or getattr(optimizer, "grad_scale", None) is not None:
        return False
    stage = _last[0][0]._per_optimizer_states[id(optimizer)]["stage"]
    return stage is not OptState.READY


def leaves_out(optimizer: Optimizer, wait: bool) -> bool:
    """Return whether a fused optimizer, which is called all the same, leaves out the step that begins.

    Args:
        optimizer: Whose step begins: the scaler has told it now whether it found an infinite gradient.
        wait: Whether to wait for a device that has not finished the backward pass yet; else the answer there is no.
    """
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and (wait or found.is_cpu) and bool(found)


def _noting_scale(self: GradScaler, outputs: Any) -> Any:
    global uses
    scaled = _original(self, outputs)
    if self.is_enabled() and self._scale is not None:
        uses += 1
        # A copy: update() changes the factor in place.
        _last[:] = [(self, self._scale.detach().clone().squeeze())]
    return scaled
