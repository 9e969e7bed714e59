"""Series: the values of one reading as arrays that grow; and how they were got. Knows no torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_editions = itertools.count()


class Series:
    """Steps and values of one reading. Numbers are kept in arrays with room to spare; arrays in a list.

    Attributes:
        edition: Changes when values that were there before have changed or gone, not when new ones came.
    """

    def __init__(self) -> None:
        self.edition = next(_editions)
        self._count = 0
        self._steps = np.empty(1, np.int64)
        self._values = np.empty(1, np.float64)
        self._nested: list[Any] | None = None  # all values, once one of them is an array
        self._stacked: np.ndarray | None = None  # the same as one array
        self._in_order = True

    @classmethod
    def of_arrays(cls, steps: np.ndarray, values: np.ndarray) -> Series:
        """Return the series that :meth:`arrays` gave these of; they may be read from disk when they are needed."""
        series = cls()
        series._steps, series._count = steps, len(steps)
        if values.ndim == 1:
            series._values = values
        else:
            series._stacked = values
        return series

    @classmethod
    def joined(cls, parts: Sequence[Series], known_steps: dict[Any, np.ndarray]) -> Series:
        """Return the series of all parts, one behind the other; ``known_steps``: those that other readings have in common."""
        if len(parts) == 1:
            return parts[0]
        try:
            arrays = [part.arrays() for part in parts]
        except ValueError:
            arrays = []
        if len({values.shape[1:] for _, values in arrays}) == 1:
            key = tuple((steps.ctypes.data, len(steps)) for steps, _ in arrays)
            if key not in known_steps:
                known_steps[key] = np.concatenate([steps for steps, _ in arrays])
            series = cls.of_arrays(known_steps[key], np.concatenate([values for _, values in arrays]))
            series._in_order = bool(np.all(series._steps[1:] > series._steps[:-1]))
            return series
        series = cls()
        for part in parts:
            steps = part._sorted_steps()
            values = part._nested if part._nested is not None else part.arrays()[1]
            series.extend(steps, values if isinstance(values, list) or values.ndim == 1 else values.tolist(), in_order=True)
        return series

    def extend(self, steps: np.ndarray, values: np.ndarray | list[Any], in_order: bool) -> None:
        """Append values, numbers or nested lists of them; ``in_order`` says whether the steps are among themselves."""
        if self._nested is None and (isinstance(values, list) or self._stacked is not None):
            self._nested = self._values[: self._count].tolist() if self._stacked is None else self._stacked.tolist()
        end = self._count + len(steps)
        if end > len(self._steps):
            # Arrays that were handed out keep the old memory.
            self._steps = _with_room(self._steps[: self._count], 2 * end)
            self._values = _with_room(self._values[: self._count], 2 * end)
        self._in_order = self._in_order and in_order and (not self._count or bool(steps[0] > self._steps[self._count - 1]))
        self._steps[self._count : end] = steps
        if self._nested is None:
            self._values[self._count : end] = values
        else:
            self._nested.extend(values)
            self._stacked = None
        self._count = end

    def leave_out_from(self, step: int) -> bool:
        """Leave out the values from ``step`` on; return whether any are left."""
        kept = int(np.searchsorted(self._sorted_steps(), step))
        if kept < self._count:
            # What was handed out keeps the old memory.
            self._steps, self._values = self._steps[:kept].copy(), self._values[:kept].copy()
            if self._nested is not None:
                self._nested, self._stacked = self._nested[:kept], None
            elif self._stacked is not None:
                self._stacked = self._stacked[:kept]
            self._count = kept
            self.edition = next(_editions)
        return kept > 0

    @property
    def last(self) -> int:
        """The last step."""
        return int(self._sorted_steps()[-1])

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and values in order of the steps; of a step that was written twice, what was written last.

        Raises:
            ValueError: if the values are arrays of different shapes.
        """
        steps = self._sorted_steps()
        if self._nested is not None and self._stacked is None:
            self._stacked = np.array(self._nested, dtype=np.float64)
        values = self._values[: self._count] if self._stacked is None else self._stacked
        steps.flags.writeable = values.flags.writeable = False
        return steps, values

    def _sorted_steps(self) -> np.ndarray:
        if not self._in_order:
            steps = self._steps[: self._count]
            # Among equal steps a stable order keeps that of writing.
            order = np.argsort(steps, kind="stable")
            order = order[np.append(np.diff(steps[order]) != 0, True)]
            self._steps = steps[order]
            if self._nested is not None:
                self._nested = [self._nested[index] for index in order]
                self._stacked = None
            elif self._stacked is not None:
                self._stacked = self._stacked[order]
            else:
                self._values = self._values[: self._count][order]
            self._count, self._in_order = len(order), True
            self.edition = next(_editions)
        return self._steps[: self._count]


def _with_room(array: np.ndarray, length: int) -> np.ndarray:
    """Return a longer array that begins with this one; the rest takes no memory until it is written to."""
    longer = np.empty(length, array.dtype)
    longer[: len(array)] = array
    return longer


class How(Mapping[int, dict[str, Any]]):
    """Step -> how a value was got, kept as columns of numbers: a million dictionaries would take half a gigabyte.

    Args:
        steps: Rising.
        kinds: What is the same at many steps: dictionaries without numbers, each with the names of the numbers that go with it.
        which: For every step the index of its kind.
        numbers: Name -> a number a step; whatever where the kind has no such name.
    """

    def __init__(
        self,
        steps: np.ndarray,
        kinds: list[tuple[dict[str, Any], list[str]]],
        which: np.ndarray,
        numbers: Mapping[str, np.ndarray],
    ):
        self.steps, self.kinds, self.which, self.numbers = steps, kinds, which, numbers

    @classmethod
    def of(cls, how: Mapping[int, Mapping[str, Any]]) -> How:
        """Return the same in columns."""
        steps = sorted(how)
        kinds: dict[str, int] = {}
        found: list[tuple[dict[str, Any], list[str]]] = []
        which = np.empty(len(steps), np.int64)
        numbers: dict[str, np.ndarray] = {}
        for place, step in enumerate(steps):
            fixed = {key: value for key, value in how[step].items() if type(value) is not float}
            names = [key for key in how[step] if key not in fixed]
            key = repr((fixed, names))
            if key not in kinds:
                kinds[key] = len(found)
                found.append((fixed, names))
            which[place] = kinds[key]
            for name in names:
                numbers.setdefault(name, np.full(len(steps), np.nan))[place] = how[step][name]
        return cls(np.array(steps, np.int64), found, which, numbers)

    @classmethod
    def joined(cls, parts: Sequence[How]) -> How:
        """Return what all parts say; of a step that is in several of them what the last one says."""
        if len(parts) == 1:
            return parts[0]
        steps = np.concatenate([part.steps for part in parts])
        if not np.all(steps[1:] > steps[:-1]):
            return cls.of({step: about for part in parts for step, about in part.items()})
        known: dict[str, int] = {}
        kinds: list[tuple[dict[str, Any], list[str]]] = []
        which = []
        for part in parts:
            for kind in part.kinds:
                if repr(kind) not in known:
                    known[repr(kind)] = len(kinds)
                    kinds.append(kind)
            which.append(np.array([known[repr(kind)] for kind in part.kinds], np.int64)[part.which])
        names = dict.fromkeys(name for part in parts for name in part.numbers)
        numbers = {
            name: np.concatenate([part.numbers.get(name, np.full(len(part.steps), np.nan)) for part in parts]) for name in names
        }
        return cls(steps, kinds, np.concatenate(which), numbers)

    def before(self, step: int) -> How:
        """Return what there is before ``step``."""
        kept = int(np.searchsorted(self.steps, step))
        numbers = {name: column[:kept] for name, column in self.numbers.items()}
        return How(self.steps[:kept], self.kinds, self.which[:kept], numbers)

    def __getitem__(self, step: int) -> dict[str, Any]:
        place = int(np.searchsorted(self.steps, step))
        if place == len(self.steps) or self.steps[place] != step:
            raise KeyError(step)
        fixed, names = self.kinds[self.which[place]]
        return {**fixed, **{name: float(self.numbers[name][place]) for name in names}}

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps.tolist())

    def __len__(self) -> int:
        return len(self.steps)
