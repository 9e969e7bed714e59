"""Pulse: loss, learning rate and step time of the steps on which nothing is measured.

They are kept as plain columns and written together, so that an untracked step costs next to nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.transfer import Row


class Pulse:
    """Collects up to ``size`` steps, or ``seconds`` worth of them."""

    size = 256
    seconds = 1.0

    def __init__(self) -> None:
        self._began = 0.0
        self._no_loss = self._no_rate = False
        self._clear()

    def add(
        self, step: int, loss: Tensor | float | None, learning_rate: float | Tensor | None, step_seconds: float, now: float
    ) -> bool:
        """Add one step, which ended at ``now``; return whether it is time to :meth:`take` the row."""
        if not self._steps:
            self._began = now
        value: Any = loss
        if type(value) is not float:  # nearly always it is
            if isinstance(value, Tensor) and value.is_cpu:
                # On the CPU the number is there; on an accelerator reading it would make the user's step wait for the device.
                value = value.item()
            elif value is None:
                value, self._no_loss = math.nan, True
        finite = loss is None or type(value) is not float or math.isfinite(value)
        if type(learning_rate) is not float:
            if learning_rate is None:
                learning_rate, self._no_rate = math.nan, True
            elif isinstance(learning_rate, Tensor) and learning_rate.is_cpu:
                learning_rate = learning_rate.item()
        self._steps.append(step)
        self._losses.append(value)
        self._rates.append(learning_rate)
        self._seconds.append(step_seconds)
        # A loss that is not finite cannot wait.
        return not finite or now - self._began >= self.seconds or len(self._steps) >= self.size

    def take(self) -> Row | None:
        """Return the collected steps as one row, or None if there are none."""
        if not self._steps:
            return None
        columns = {"loss": self._losses, "learning_rate": self._rates, "step_time": self._seconds}
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
        self._losses: list[Any] = []
        self._rates: list[Any] = []
        self._seconds: list[float] = []
        self._no_loss = self._no_rate = False
