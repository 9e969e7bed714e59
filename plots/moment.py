"""Moment: a run as it stood after one of its steps, for an animation of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cockpit_lite.run import Run


class Moment(Run):
    """What a run held after a step, to be moved from step to step; it reads another run and no file.

    Args:
        run: The whole run.
    """

    def __init__(self, run: Run):
        self._whole = run
        self.folder = run.folder
        self.info = {**run.info, "status": "running"}
        self._step = -1
        self._rewound = 0
        self.move_to(0 if run.last_step is None else run.last_step)

    def move_to(self, step: int) -> None:
        """Show what was there after ``step``."""
        self._rewound += step < self._step
        self._step = step
        self.alerts = [alert for alert in self._whole.alerts if alert.step <= step]

    def refresh(self) -> bool:
        """Return False: a moment does not grow."""
        return False

    @property
    def names(self) -> list[str]:
        """Names of the readings that had a value by then, or never have one that can be shown."""
        return [name for name in self._whole.names if self._count(name)]

    @property
    def last_step(self) -> int | None:
        """The step, or the last one of the run."""
        last = self._whole.last_step
        return None if last is None else min(last, self._step)

    @property
    def seconds(self) -> float:
        """How long it took: when a step was taken is not recorded; steps of one length are close enough for a header."""
        last = self._whole.last_step
        return 0.0 if last is None else self._whole.seconds * (self._step + 1) / (last + 1)

    @property
    def not_measured(self) -> dict[str, str]:
        """That of the whole run."""
        return self._whole.not_measured

    @property
    def bad_lines(self) -> int:
        """Those of the whole run."""
        return self._whole.bad_lines

    def layers(self, name: str) -> list[str]:
        """Return the layers of a reading that had a value by then."""
        return [layer for layer in self._whole.layers(name) if self._count(f"{name}/{layer}")]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps and values of a reading up to the step."""
        count = self._count(name)
        if not count:
            raise KeyError(f"no reading {name!r} up to step {self._step}")
        steps, values = self._whole.series(name)
        return steps[:count], values[:count]

    def edition(self, name: str) -> int:
        """Return a number that changes when a reading has not merely grown: by going back, too."""
        return self._whole.edition(name) + self._rewound

    def how(self, name: str) -> Mapping[int, dict[str, Any]]:
        """Return how the values were got."""
        return self._whole.how(name)

    def _count(self, name: str) -> int:
        """Return how many values a reading had by then."""
        try:
            steps, _ = self._whole.series(name)
        except (KeyError, ValueError):  # never measured, or arrays of different lengths
            return 0
        return int(np.searchsorted(steps, self._step, side="right"))
