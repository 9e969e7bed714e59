"""Pulse: loss, learning rate and step time of the steps on which nothing is measured.

They are kept as plain columns and written together, so that an untracked step costs next to nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.transfer import Row


class Pulse:
    """Collects up to ``size`` steps, or ``seconds`` worth of them."""

    size = 256
    seconds = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._began = 0.0
        self._no_loss = self._no_rate = False
        self._clear()

    def add(self, step: int, loss: Tensor | None, learning_rate: float | Tensor | None, step_seconds: float) -> bool:
        """Add one step; return whether it is time to :meth:`take` the row."""
        if not self._steps:
            self._began = self._clock()
        # On the CPU the number is there; on an accelerator reading it would make the user's step wait for the device.
        value = math.nan if loss is None else loss.item() if loss.is_cpu else loss
        rate = math.nan if learning_rate is None else learning_rate
        self._steps.append(step)
        self._columns["loss"].append(value)
        self._columns["learning_rate"].append(rate.item() if isinstance(rate, Tensor) and rate.is_cpu else rate)
        self._columns["step_time"].append(step_seconds)
        self._no_loss = self._no_loss or loss is None
        self._no_rate = self._no_rate or learning_rate is None
        return (
            len(self._steps) >= self.size
            or self._clock() - self._began >= self.seconds
            or (loss is not None and loss.is_cpu and not math.isfinite(value))  # cannot wait
        )

    def take(self) -> Row | None:
        """Return the collected steps as one row, or None if there are none."""
        if not self._steps:
            return None
        columns: dict[str, Any] = dict(self._columns)
        # A step without a seen loss is rare (no backward call): then the block goes without, instead of with invented numbers.
        if self._no_loss:
            del columns["loss"]
        if self._no_rate:
            del columns["learning_rate"]
        values = {
            name: torch.stack(list(column)) if isinstance(column[0], Tensor) else column for name, column in columns.items()
        }
        row = Row(self._steps[-1], values, steps=self._steps)
        self._clear()
        return row

    def _clear(self) -> None:
        self._steps: list[int] = []
        self._columns: dict[str, list[Any]] = {"loss": [], "learning_rate": [], "step_time": []}
        self._no_loss = self._no_rate = False
