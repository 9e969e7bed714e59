"""Pulse: loss, learning rate and step time of the steps on which nothing is measured.

They are kept as plain columns and written together, so that an untracked step costs next to nothing.
"""

from __future__ import annotations

import math
from math import isfinite
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
        seen = loss is not None
        if type(loss) is not float or type(learning_rate) is not float:  # nearly always they are
            loss, learning_rate = self._numbers(loss, learning_rate)
        self._steps.append((step, loss, learning_rate, step_seconds))
        if type(loss) is float and not isfinite(loss) and seen:
            return True  # that cannot wait
        return now - self._began >= self.seconds or len(self._steps) >= self.size

    def _numbers(self, loss: Tensor | float | None, learning_rate: float | Tensor | None) -> tuple[Any, Any]:
        """Return both, as numbers where they are there: reading them from an accelerator would make the user's step wait."""
        if isinstance(loss, Tensor) and loss.is_cpu:
            loss = loss.item()
        elif loss is None:
            loss, self._no_loss = math.nan, True
        if isinstance(learning_rate, Tensor) and learning_rate.is_cpu:
            learning_rate = learning_rate.item()
        elif learning_rate is None:
            learning_rate, self._no_rate = math.nan, True
        return loss, learning_rate

    def take(self) -> Row | None:
        """Return the collected steps as one row, or None if there are none."""
        if not self._steps:
            return None
        steps, losses, rates, seconds = map(list, zip(*self._steps, strict=True))
        columns = {"loss": losses, "learning_rate": rates, "step_time": seconds}
        # A step without a seen loss is rare (no backward call): then the block goes without, instead of with invented numbers.
        if self._no_loss:
            del columns["loss"]
        if self._no_rate:
            del columns["learning_rate"]
        values = {
            name: torch.stack(list(column)) if isinstance(column[0], Tensor) else column for name, column in columns.items()
        }
        row = Row(steps[-1], values, steps=steps)
        self._clear()
        return row

    def _clear(self) -> None:
        self._steps: list[tuple[int, Any, Any, float]] = []
        self._no_loss = self._no_rate = False
