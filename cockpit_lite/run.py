"""Run: a recorded (or still growing) training run, opened for reading. Knows no torch."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cockpit_lite.alert import Alert
from cockpit_lite.run_log import ALERTS_FILE, READINGS_FILE, LineReader, ReadingsReader, decode, read_info

if TYPE_CHECKING:
    from cockpit_lite.report import Report


class Run:
    """The readings and alerts of one run.

    Attributes:
        folder: Where it is.
        info: The content of ``run.json``.
        alerts: The alerts in the order they were raised.
        not_measured: Reading name -> why there is no number for it (at the moment).
        bad_lines: How many lines of the log could not be read and were skipped.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.info: dict[str, Any] = {}
        self.alerts: list[Alert] = []
        self.not_measured: dict[str, str] = {}
        self.seconds = 0.0
        self._last_step: int | None = None
        self._series: dict[str, _Series] = {}
        self._how: dict[str, dict[int, dict[str, Any]]] = {}
        self._bad_lines = 0
        self._readings = ReadingsReader(self.folder / READINGS_FILE)
        self._alerts = LineReader(self.folder / ALERTS_FILE)
        self.refresh()

    def refresh(self) -> bool:
        """Read what was appended since the last call; return whether there was anything new.

        Raises:
            NotARunError: if the folder holds no run.
        """
        info = read_info(self.folder)
        changed = info != self.info
        self.info = info
        for line in self._readings.new_lines():
            changed = True
            try:
                self._add(line)
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError, RecursionError):
                self._bad_lines += 1
        for line in self._alerts.new_lines():
            changed = True
            try:
                evidence = {name: decode(value) for name, value in line.get("evidence", {}).items()}
                self.alerts.append(Alert.from_dict({**line, "evidence": evidence}))
            except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
                self._bad_lines += 1
        return changed

    @property
    def bad_lines(self) -> int:
        """Number of log lines that could not be read and were skipped."""
        return self._bad_lines + self._readings.bad_lines + self._alerts.bad_lines

    @property
    def names(self) -> list[str]:
        """Names of all readings, sorted; layerwise ones are ``<reading>/<module or parameter>``."""
        return sorted(self._series)

    @property
    def last_step(self) -> int | None:
        """The last step of which anything is known, or None for a run without steps."""
        return self._last_step

    def layers(self, name: str) -> list[str]:
        """Return the module or parameter names for which ``<name>/...`` was recorded, in network order."""
        return [key.removeprefix(name + "/") for key in self._series if key.startswith(name + "/")]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps (int64) and the values (float64) of a reading, sorted by step.

        The arrays are the run's own, so that asking again costs nothing, and cannot be written to: take a copy to change them.

        Raises:
            KeyError: if the run has no such reading; the message says why, where the run knows.
            ValueError: if its values are arrays of different shapes.
        """
        if name not in self._series:
            reason = self.not_measured.get(name)
            raise KeyError(f"no reading {name!r} in {self.folder}" + (f": not measured, because {reason}" if reason else ""))
        return self._series[name].arrays()

    def edition(self, name: str) -> int:
        """Return a number that changes when earlier values of a reading have changed, not when new ones were appended."""
        return self._series[name].edition if name in self._series else 0

    def how(self, name: str) -> dict[int, dict[str, Any]]:
        """Return step -> how the value was got, for the steps where it is more than exact."""
        return self._how.get(name, {})

    def report(self) -> Report:
        """Return the diagnostic report of the run as it stands."""
        from cockpit_lite.report import build_report  # the report reads runs, not the other way round

        return build_report(self)

    def _add(self, line: dict[str, Any]) -> None:
        """Take one line; nothing of it if any part of it is wrong."""
        reasons: dict[str, str] = line.get("not_measured", {})
        seconds = float(decode(line.get("time", 0.0)))
        if "steps" in line:
            steps = np.array(line["steps"], dtype=np.int64)  # OverflowError: beyond any training
            columns = {name: _numbers(column) for name, column in line["values"].items()}
        else:
            steps = np.array([line["step"]] if "values" in line else [], dtype=np.int64)
            columns = {name: _numbers([value]) for name, value in line.get("values", {}).items()}
        how = {name: {key: decode(value) for key, value in about.items()} for name, about in line.get("how", {}).items()}
        how_step = int(line["step"]) if how else 0
        if steps.ndim != 1 or any(len(column) != len(steps) for column in columns.values()):
            raise ValueError("there are more values than steps")
        for name, reason in reasons.items():
            if reason:
                self.not_measured[name] = str(reason)
            else:
                self.not_measured.pop(name, None)
        if math.isfinite(seconds):
            self.seconds = max(self.seconds, seconds)
        if columns and len(steps):
            last = int(steps.max())
            self._last_step = last if self._last_step is None else max(self._last_step, last)
            in_order = bool(np.all(steps[1:] > steps[:-1]))
            for name, column in columns.items():
                if name not in self._series:
                    self._series[name] = _Series()
                self._series[name].extend(steps, column, in_order)
        for name, about in how.items():
            self._how.setdefault(name, {})[how_step] = about


class _Series:
    """The values of one reading, growing. Numbers are kept in arrays with room to spare; arrays in a list."""

    def __init__(self) -> None:
        self._count = 0
        self._steps = np.empty(1, np.int64)
        self._values = np.empty(1, np.float64)
        self._nested: list[Any] | None = None  # all values, once one of them is an array
        self._stacked: np.ndarray | None = None  # the same as one array
        self._in_order = True
        self.edition = 0

    def extend(self, steps: np.ndarray, values: np.ndarray | list[Any], in_order: bool) -> None:
        """Append values, numbers or nested lists of them; ``in_order`` says whether the steps are among themselves."""
        if self._nested is None and isinstance(values, list):
            self._nested = self._values[: self._count].tolist()
        end = self._count + len(steps)
        if end > len(self._steps):
            # Arrays that were handed out keep the old memory.
            self._steps = np.resize(self._steps, 2 * end)
            self._values = np.resize(self._values, 2 * end)
        self._in_order = self._in_order and in_order and (not self._count or bool(steps[0] > self._steps[self._count - 1]))
        self._steps[self._count : end] = steps
        if self._nested is None:
            self._values[self._count : end] = values
        else:
            self._nested.extend(values)
            self._stacked = None
        self._count = end

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and values in order of the steps; of a step that was written twice, what was written last."""
        if not self._in_order:
            self._sort()
        if self._nested is not None and self._stacked is None:
            self._stacked = np.array(self._nested, dtype=np.float64)
        steps = self._steps[: self._count]
        values = self._values[: self._count] if self._stacked is None else self._stacked
        steps.flags.writeable = values.flags.writeable = False
        return steps, values

    def _sort(self) -> None:
        steps = self._steps[: self._count]
        # Among equal steps a stable order keeps that of writing.
        order = np.argsort(steps, kind="stable")
        order = order[np.append(np.diff(steps[order]) != 0, True)]
        self._steps = steps[order]
        if self._nested is None:
            self._values = self._values[: self._count][order]
        else:
            self._nested = [self._nested[index] for index in order]
            self._stacked = None
        self._count, self._in_order = len(order), True
        self.edition += 1


def _numbers(column: list[Any]) -> np.ndarray | list[Any]:
    """Return the values of a column: an array if they are numbers, a list if there are (nested) lists of numbers among them.

    Raises:
        ValueError: if one of them is neither.
        OverflowError: if one is an integer that no float can hold.
    """
    if not set(map(type, column)) <= {float, int}:
        column = [decode(value) for value in column]
        if not all(map(_is_numeric, column)):
            raise ValueError("a reading is not a number")
        if any(isinstance(value, list) for value in column):
            return column
    return np.array(column, dtype=np.float64)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() < 1024  # JSON knows integers that no float can hold
    return isinstance(value, float) or (isinstance(value, list) and all(map(_is_numeric, value)))


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Open a run folder.

    Raises:
        NotARunError: if ``folder`` holds no run.
    """
    return Run(folder)
