"""The black box on an accelerator, which works behind the host: by the time a NaN is known, the weights are lost.

So the device keeps them itself: after every backward pass the weights are copied, unless a step was bad already, which the device
knows in time. Whether it was arrives at the host a few steps later, without anybody waiting for it, and finds copied weights, and
inputs that are still held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cockpit_lite.black_box.calls import MOST_INPUT_BYTES, Call
from cockpit_lite.black_box.containers import size

#: Steps whose inputs are held until it is known how they went; if the host runs further ahead, the oldest are let go.
MOST_IN_FLIGHT = 8
#: The copies of the weights take at most this share of the memory of the device.
MOST_MEMORY = 0.04


@dataclass
class Pending:
    """A step of which it is not known yet how it went.

    Attributes:
        step: Its number.
        calls: Its calls; empty: let go.
        loss: On the device.
        bad: On the host, when ``event`` has come: whether the loss or the gradient was bad.
        event: None: it is known already.
    """

    step: int
    calls: Sequence[Call]
    loss: Tensor | None
    bad: Tensor
    event: torch.Event | None


class Latch:
    """Holds the weights of the first bad step.

    Args:
        parameters: By name, on one device.
        most_bytes: What one copy of the weights may take; a larger model is watched without.
    """

    def __init__(self, parameters: Mapping[str, Tensor], most_bytes: int):
        self._parameters = parameters
        self._device = next(iter(parameters.values())).device
        self._pending: list[Pending] = []
        self._copies: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # the last weights, and those that are held
        size = sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())
        self.keeps_weights = size <= most_bytes
        self._latched = torch.zeros((), dtype=torch.bool, device=self._device)

    def note(self, step: int, calls: Sequence[Call], loss: Tensor | None, gradients: Sequence[Tensor]) -> None:
        """Look at a step after its backward pass, on the device."""
        values = [value.detach().abs().float().sum() for value in (*([] if loss is None else [loss]), *gradients)]
        if not values:
            return
        bad = ~torch.isfinite(torch.stack([value.to(self._device) for value in values])).all()
        if self.keeps_weights:
            self._copy_weights()
        self._latched = self._latched | bad
        if self._device.type == "cpu":
            self._pending.append(Pending(step, calls, loss, bad, None))
        else:
            host = torch.empty((), dtype=torch.bool, pin_memory=self._device.type == "cuda")
            host.copy_(bad, non_blocking=True)
            event = torch.Event(self._device.type)
            event.record()
            self._pending.append(Pending(step, calls, None if loss is None else loss.detach(), host, event))
        held = [pending for pending in self._pending if pending.calls]
        while len(held) > 1 and (len(held) > MOST_IN_FLIGHT or _size(held[:-1]) > MOST_INPUT_BYTES):
            held.pop(0).calls = ()

    def arrived(self, wait: bool = False) -> list[tuple[Pending, bool]]:
        """Return the steps of which it is known by now how they went, and whether that was badly."""
        found = []
        while self._pending:
            first = self._pending[0]
            if first.event is not None and not first.event.query():
                if not wait:
                    break
                first.event.synchronize()
            found.append((first, bool(first.bad)))
            del self._pending[0]
        return found

    def weights(self) -> dict[str, Tensor]:
        """Return the weights before the first bad step since :meth:`release`."""
        found: dict[str, Tensor] = {}
        for dtype, (_, held) in self._copies.items():
            start = 0
            for name, parameter in self._parameters.items():
                if parameter.dtype == dtype:
                    found[name] = held[start : start + parameter.numel()].reshape(parameter.shape)
                    start += parameter.numel()
        return found

    def release(self) -> None:
        """Hold the weights of the next bad step."""
        self._latched = torch.zeros_like(self._latched)

    def _copy_weights(self) -> None:
        for dtype in {parameter.dtype for parameter in self._parameters.values()}:
            flat = [p.detach().reshape(-1) for p in self._parameters.values() if p.dtype == dtype]
            if dtype not in self._copies:
                last = torch.cat(flat)
                self._copies[dtype] = (last, last.clone())
                continue
            last, held = self._copies[dtype]
            torch.cat(flat, out=last)
            torch.where(self._latched, held, last, out=held)


def _size(pending: Sequence[Pending]) -> int:
    return size([(call.args, call.kwargs) for one in pending for call in one.calls])
