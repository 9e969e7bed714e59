"""History: the readings of the run so far, as the rules see them. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class History:
    """Readings by name, appended step by step; filled live by the cockpit, or from a run log afterwards.

    Args:
        shapes: Shapes of the parameters by name, as in ``run.json``.

    Attributes:
        step: The last step of which anything is known; -1 before the first.
        shapes: As given.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        self.step = -1
        self.shapes = dict(shapes or {})
        self._series: dict[str, tuple[list[int], list[float]]] = {}

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the scalar readings of one step; arrays are not kept."""
        self.step = max(self.step, step)
        for name, value in values.items():
            if isinstance(value, (int, float)):
                steps, numbers = self._series.setdefault(name, ([], []))
                steps.append(step)
                numbers.append(float(value))

    def add_block(self, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        """Append the readings of several steps."""
        self.step = max(self.step, *steps)
        for name, column in values.items():
            known_steps, known_values = self._series.setdefault(name, ([], []))
            known_steps.extend(steps)
            known_values.extend(column)

    def __contains__(self, name: str) -> bool:
        return name in self._series

    def steps(self, name: str) -> list[int]:
        """Return the steps at which ``name`` was measured; empty if never."""
        return self._series.get(name, ([], []))[0]

    def values(self, name: str) -> list[float]:
        """Return the values of ``name`` in the order of :meth:`steps`; empty if never measured."""
        return self._series.get(name, ([], []))[1]

    def last(self, name: str) -> float | None:
        """Return the last value of ``name``, or None."""
        values = self.values(name)
        return values[-1] if values else None

    def pairs(self, first: str, second: str) -> list[tuple[int, float, float]]:
        """Return (step, value of first, value of second) for the steps at which both were measured."""
        other = dict(zip(self.steps(second), self.values(second), strict=True))
        return [(step, value, other[step]) for step, value in zip(self.steps(first), self.values(first), strict=True) if step in other]

    def layers(self, name: str) -> dict[str, float]:
        """Return the last value of every ``<name>/<layer>``, in network order."""
        prefix = name + "/"
        return {key.removeprefix(prefix): values[-1] for key, (_, values) in self._series.items() if key.startswith(prefix)}
