"""History: the readings of the run so far, as the rules see them. Knows no torch.

Rules are asked after every measured step of a training that may take millions, so what they do must not grow with the run.
History keeps everything, eight bytes a number, and answers what rules want of a long run in bounded time: a window at the end, an
even sample of any stretch, the highest value, the first value that fulfils a condition.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cockpit_lite.diagnosis.derived import derived_readings


class _Series:
    """One reading: steps in ascending order, the values, and the highest finite one."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.values = array("d")
        self.highest = -math.inf

    def append(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)
        if self.highest < value < math.inf:
            self.highest = value

    def extend(self, steps: Sequence[int], values: Sequence[float]) -> None:
        self.steps.extend(steps)
        self.values.extend(values)
        self.highest = max(self.highest, max(filter(math.isfinite, values), default=-math.inf))


class History:
    """Readings by name, appended step by step; filled live by the cockpit, or from a run log afterwards.

    Args:
        shapes: Shapes of the parameters by name, as in ``run.json``.
        optimizers: Class names of the optimizers; empty if they are not known.
        momentum: The largest momentum of the optimizers that step along the gradient.

    Attributes:
        step: The last step of which anything is known; -1 before the first.
        shapes: As given, in network order.
        optimizers: As given.
        momentum: As given.
        gradient_steps: Whether every optimizer is known to step along the gradient (momentum included): only then the Taylor
            terms of a plain gradient step say something about the steps that are taken.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]] | None = None, optimizers: Sequence[str] = (), momentum: float = 0.0
    ) -> None:
        self.step = -1
        self.shapes = dict(shapes or {})
        self.optimizers = tuple(optimizers)
        self.momentum = momentum
        self.gradient_steps = set(self.optimizers) == {"SGD"}
        self._series: dict[str, _Series] = {}
        self._layers: dict[str, dict[str, float]] = {}
        self._searched: dict[tuple[str, Callable[[float], bool]], int] = {}

    @classmethod
    def of_run(cls, info: Mapping[str, Any]) -> History:
        """Return an empty history of the run that ``run.json`` describes."""
        optimizers = info.get("optimizer", ())
        momentum = max((about.get("momentum", 0.0) for about in optimizers), default=0.0)
        return cls(info.get("shapes"), [about["class"] for about in optimizers], momentum)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the scalar readings of one step; arrays are not kept, and of layerwise readings only the last ones."""
        self.step = max(self.step, step)
        layers: dict[str, dict[str, float]] = {}
        for name, value in values.items():
            if isinstance(value, (int, float)):
                reading, _, layer = name.partition("/")
                if layer:
                    layers.setdefault(reading, {})[layer] = float(value)
                else:
                    self._append(name, step, float(value))
        self._layers.update(layers)
        for name, value in derived_readings(values, self.gradient_steps).items():
            self._append(name, step, value)

    def add_block(self, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        """Append plain readings of several steps."""
        self.step = max(self.step, *steps)
        for name, column in values.items():
            if len(column) != len(steps):
                raise ValueError(f"{name!r} has {len(column)} values for {len(steps)} steps")
            self._of(name).extend(steps, column)

    def _append(self, name: str, step: int, value: float) -> None:
        self._of(name).append(step, value)

    def _of(self, name: str) -> _Series:
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = _Series()
        return series

    def __contains__(self, name: str) -> bool:
        return name in self._series or name in self._layers

    def steps(self, name: str) -> Sequence[int]:
        """Return the steps at which ``name`` was measured; empty if never."""
        return self._series[name].steps if name in self._series else ()

    def values(self, name: str) -> Sequence[float]:
        """Return the values of ``name`` in the order of :meth:`steps`; empty if never measured. There may be millions: slice."""
        return self._series[name].values if name in self._series else ()

    def last(self, name: str) -> float | None:
        """Return the last value of ``name``, or None."""
        values = self.values(name)
        return values[-1] if values else None

    def highest(self, name: str) -> float | None:
        """Return the highest finite value of ``name`` so far, or None."""
        series = self._series.get(name)
        return None if series is None or series.highest == -math.inf else series.highest

    def place(self, name: str, step: int) -> int:
        """Return where in :meth:`values` the readings from ``step`` on begin."""
        return bisect_left(self.steps(name), step)

    def first(self, name: str, condition: Callable[[float], bool]) -> int | None:
        """Return the place of the first value that fulfils the condition, or None.

        Each value is looked at once in the life of the history: hand over the same function every time, not a new lambda.
        """
        values = self.values(name)
        place = self._searched.get((name, condition), 0)
        while place < len(values) and not condition(values[place]):
            place += 1
        self._searched[name, condition] = place
        return place if place < len(values) else None

    def sample(self, name: str, begin: int = 0, count: int = 40) -> list[float]:
        """Return values of ``name`` from step ``begin`` on, evenly spread and ending with the last; fewer than ``2 * count``."""
        values = self.values(name)
        first = self.place(name, begin)
        stride = max((len(values) - first) // count, 1)
        return list(values[first + (len(values) - first - 1) % stride :: stride])

    def layers(self, name: str) -> Mapping[str, float]:
        """Return the last values of ``<name>/<layer>``."""
        return self._layers.get(name, {})
