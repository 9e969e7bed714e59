"""Columns: what the lines of a log say, as one pair of arrays a reading. Knows no torch."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cockpit_lite.run_log import decode
from cockpit_lite.series import How, Series


@dataclass
class Content:
    """What was read from a log up to some place, or from a piece of it.

    Attributes:
        offset: Up to which byte.
        series: Reading -> its values.
        how: Reading -> how they were got.
        not_measured: Reading -> why there is no number for it; of a piece also "" where there is one again.
        seconds: Since the run began.
        last_step: The last step of which anything is known.
        unread: Number of lines that could not be read.
    """

    offset: int
    series: dict[str, Series]
    how: dict[str, How]
    not_measured: dict[str, str]
    seconds: float
    last_step: int | None
    unread: int


class Columns:
    """Takes lines, or what was made of them before.

    Attributes:
        not_measured: As of :class:`Content`, like the next two.
        seconds: Since the run began.
        last_step: Of which anything is known.
        unread: Number of lines that were no such thing.
    """

    #: So many steps wait to be made arrays of.
    most_waiting = 4_096

    def __init__(self, forget_reasons: bool = True) -> None:
        """Begin with nothing; ``forget_reasons``: a reading that is there again has no reason, else an empty one."""
        self.not_measured: dict[str, str] = {}
        self.seconds = 0.0
        self.last_step: int | None = None
        self.unread = 0
        self._forget_reasons = forget_reasons
        self._series: dict[str, Series] = {}
        self._waiting: dict[str, tuple[list[int], list[Any]]] = {}  # single values, too short for arrays of their own
        self._fresh_how: dict[str, dict[int, dict[str, Any]]] = {}
        self._how: dict[str, How] = {}

    @property
    def series(self) -> dict[str, Series]:
        """Reading -> its values."""
        if self._waiting:
            for name in self._waiting:
                self._settle(name)
            self._waiting.clear()
        return self._series

    def how(self, name: str) -> Mapping[int, dict[str, Any]]:
        """Return step -> how the value was got, for the steps where it is more than exact."""
        fresh: dict[int, dict[str, Any]] = self._fresh_how.get(name, {})
        known = self._how.get(name)
        return fresh if known is None else ChainMap(fresh, known)  # type: ignore[arg-type]

    def add(self, line: dict[str, Any]) -> None:
        """Take one line; nothing of it, but that it could not be read, if any part of it is wrong."""
        try:
            self._add(line)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError):
            self.unread += 1

    def content(self, offset: int) -> Content:
        """Return everything."""
        how = {name: How.of(self.how(name)) for name in {*self._fresh_how, *self._how}}
        return Content(offset, self.series, how, self.not_measured, self.seconds, self.last_step, self.unread)

    def take(self, pieces: Sequence[Content]) -> None:
        """Take what was made of the next pieces of the log before."""
        own, how = self.series, {name: [How.of(self.how(name))] for name in {*self._fresh_how, *self._how}}
        series = {name: [known] for name, known in own.items()}
        for piece in pieces:
            for name, more in piece.series.items():
                series.setdefault(name, []).append(more)
            for name, about in piece.how.items():
                how.setdefault(name, []).append(about)
            self._take_reasons(piece.not_measured)
            self.seconds = max(self.seconds, piece.seconds)
            self._reach(piece.last_step)
            self.unread += piece.unread
        steps: dict[Any, np.ndarray] = {}
        self._series = {name: Series.joined(parts, steps) for name, parts in series.items()}
        self._how, self._fresh_how = {name: How.joined(parts) for name, parts in how.items()}, {}

    def _add(self, line: dict[str, Any]) -> None:
        if "resumed" in line:
            self._leave_out_from(int(line["resumed"]))
            return
        reasons: dict[str, str] = {name: str(reason) for name, reason in line.get("not_measured", {}).items()}
        seconds = float(decode(line.get("time", 0.0)))
        block = "steps" in line
        if block:
            steps = np.array(line["steps"], dtype=np.int64)  # OverflowError: beyond any training
            columns = {name: _numbers(column) for name, column in line["values"].items()}
            if steps.ndim != 1 or any(len(column) != len(steps) for column in columns.values()):
                raise ValueError("there are more values than steps")
            last = int(steps.max()) if len(steps) and columns else None
        else:
            values = line.get("values", {})
            numbers = _row(list(values.values()))
            last = _step(line["step"]) if values else None
        how = {name: {key: decode(value) for key, value in about.items()} for name, about in line.get("how", {}).items()}
        how_step = int(line["step"]) if how else 0
        self._take_reasons(reasons)
        if math.isfinite(seconds):
            self.seconds = max(self.seconds, seconds)
        self._reach(last)
        if last is not None and block:
            in_order = bool(np.all(steps[1:] > steps[:-1]))
            for name, column in columns.items():
                self._settle(name)
                self._waiting.pop(name, None)
                self._of(name).extend(steps, column, in_order)
        elif last is not None:
            for name, value in zip(values, numbers, strict=True):
                if name not in self._waiting:
                    self._of(name)  # readings are in the order in which they were first seen
                    self._waiting[name] = [], []
                known_steps, known_values = self._waiting[name]
                known_steps.append(last)
                known_values.append(value)
                if len(known_steps) >= self.most_waiting:
                    self._settle(name)
                    del self._waiting[name]
        for name, about in how.items():
            self._fresh_how.setdefault(name, {})[how_step] = about

    def _take_reasons(self, reasons: Mapping[str, str]) -> None:
        for name, reason in reasons.items():
            if reason or not self._forget_reasons:
                self.not_measured[name] = reason
            else:
                self.not_measured.pop(name, None)

    def _reach(self, step: int | None) -> None:
        if step is not None:
            self.last_step = step if self.last_step is None else max(self.last_step, step)

    def _of(self, name: str) -> Series:
        if name not in self._series:
            self._series[name] = Series()
        return self._series[name]

    def _settle(self, name: str) -> None:
        """Make arrays of the single values of a reading that wait."""
        if name in self._waiting:
            steps, values = np.array(self._waiting[name][0], np.int64), self._waiting[name][1]
            nested = list in set(map(type, values))
            in_order = bool(np.all(steps[1:] > steps[:-1]))
            self._of(name).extend(steps, values if nested else np.array(values, np.float64), in_order)

    def _leave_out_from(self, step: int) -> None:
        """Training has begun again from a checkpoint: what came after it belongs to weights that are no more."""
        series = self.series
        for name in tuple(series):
            if not series[name].leave_out_from(step):
                del series[name]
        for how in self._fresh_how.values():
            for later in [other for other in how if other >= step]:
                del how[later]
        self._how = {name: known.before(step) for name, known in self._how.items()}
        if self.last_step is not None and self.last_step >= step:
            self.last_step = max((one.last for one in series.values()), default=None)


def _step(step: Any) -> int:
    if type(step) is not int:
        raise TypeError("a step is no whole number")
    return int(np.int64(step))  # OverflowError: beyond any training


def _row(values: list[Any]) -> list[Any]:
    """Return the values of one step: numbers, or (nested) lists of numbers.

    Raises:
        ValueError: if one of them is neither, or is an integer that no float can hold.
    """
    kinds = set(map(type, values))
    if kinds != {float}:
        if not kinds <= {float, int}:
            values = [decode(value) for value in values]
        if not all(map(_is_numeric, values)):
            raise ValueError("a reading is not a number")
    return values


def _numbers(column: list[Any]) -> np.ndarray | list[Any]:
    """Return the values of a column: an array if they are numbers, a list if there are (nested) lists of numbers among them.

    Raises:
        ValueError: if one of them is neither.
        OverflowError: if one is an integer that no float can hold.
    """
    if not set(map(type, column)) <= {float, int}:
        column = _row(column)
        if any(isinstance(value, list) for value in column):
            return column
    return np.array(column, dtype=np.float64)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() < 1024  # JSON knows integers that no float can hold
    return isinstance(value, float) or (isinstance(value, list) and all(map(_is_numeric, value)))
