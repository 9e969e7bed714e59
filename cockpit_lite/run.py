"""Run: a recorded (or still growing) training run, opened for reading. Knows no torch."""

from __future__ import annotations

import dataclasses
import math
import os
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cockpit_lite import run_cache
from cockpit_lite.alert import Alert
from cockpit_lite.run_log import ALERTS_FILE, LineReader, ReadingsReader, decode, ranks_in, read_info, readings_file
from cockpit_lite.series import How, Series

if TYPE_CHECKING:
    from cockpit_lite.report import Report


class Run:
    """The readings and alerts of one run.

    Attributes:
        folder: Where it is.
        rank: Of the process whose readings these are, where several train together.
        info: The content of ``run.json``.
        alerts: The alerts in the order they were raised.
        not_measured: Reading name -> why there is no number for it (at the moment).
        bad_lines: How many lines of the log could not be read and were skipped.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int = 0):
        self.folder = Path(folder)
        self.rank = rank
        self.info: dict[str, Any] = {}
        self.alerts: list[Alert] = []
        self.not_measured: dict[str, str] = {}
        self.seconds = 0.0
        self._last_step: int | None = None
        self._series: dict[str, Series] = {}
        self._how: dict[str, dict[int, dict[str, Any]]] = {}
        self._cached_how: dict[str, How] = {}
        self._bad_lines = self._bad_alerts = 0
        self._readings = ReadingsReader(self.folder / readings_file(rank))
        self._alerts = LineReader(self.folder / ALERTS_FILE)
        known = self._take_cache()
        self.refresh()
        if self._readings.offset - known >= run_cache.WORTH:
            self._write_cache()

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
                if "resumed" in line:
                    self.alerts = [alert for alert in self.alerts if alert.step < int(line["resumed"])]
                    continue
                if "until" in line and "cause" not in line:
                    self._end_alert(str(line["code"]), int(line["step"]), int(line["until"]))
                    continue
                evidence = {name: decode(value) for name, value in line.get("evidence", {}).items()}
                self.alerts.append(Alert.from_dict({**line, "evidence": evidence}))
            except (TypeError, ValueError, AttributeError, OverflowError, RecursionError):
                self._bad_alerts += 1
        return changed

    def _end_alert(self, code: str, step: int, until: int) -> None:
        for place, alert in enumerate(self.alerts):
            if alert.code == code and alert.step == step:
                self.alerts[place] = dataclasses.replace(alert, until=until)

    @property
    def bad_lines(self) -> int:
        """Number of log lines that could not be read and were skipped."""
        return self._bad_lines + self._bad_alerts + self._readings.bad_lines + self._alerts.bad_lines

    @property
    def ranks(self) -> list[int]:
        """The processes that have written readings; alone or not, there is a rank 0."""
        return ranks_in(self.folder)

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

    def how(self, name: str) -> Mapping[int, dict[str, Any]]:
        """Return step -> how the value was got, for the steps where it is more than exact."""
        fresh: dict[int, dict[str, Any]] = self._how.get(name, {})
        cached = self._cached_how.get(name)
        return fresh if cached is None else ChainMap(fresh, cached)  # type: ignore[arg-type]

    def report(self) -> Report:
        """Return the diagnostic report of the run as it stands."""
        from cockpit_lite.report import build_report  # the report reads runs, not the other way round

        return build_report(self)

    def _take_cache(self) -> int:
        """Take over what an earlier reader left beside the log; return up to which byte that is."""
        content = run_cache.load(self._readings.path)
        if content is None:
            return 0
        self._series, self._cached_how = content.series, content.how
        self.not_measured, self.seconds, self._last_step = content.not_measured, content.seconds, content.last_step
        self._bad_lines = content.unread
        self._readings.go_on(content.offset)
        return content.offset

    def _write_cache(self) -> None:
        how = {name: How.of(self.how(name)) for name in {*self._how, *self._cached_how}}
        unread = self._bad_lines + self._readings.bad_lines
        found = (self._readings.offset, self._series, how, self.not_measured, self.seconds, self._last_step, unread)
        run_cache.save(self._readings.path, run_cache.Content(*found))

    def _add(self, line: dict[str, Any]) -> None:
        """Take one line; nothing of it if any part of it is wrong."""
        if "resumed" in line:
            self._leave_out_from(int(line["resumed"]))
            return
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
                    self._series[name] = Series()
                self._series[name].extend(steps, column, in_order)
        for name, about in how.items():
            self._how.setdefault(name, {})[how_step] = about

    def _leave_out_from(self, step: int) -> None:
        """Training has begun again from a checkpoint: what came after it belongs to weights that are no more."""
        for name in tuple(self._series):
            if not self._series[name].leave_out_from(step):
                del self._series[name]
        for how in self._how.values():
            for later in [other for other in how if other >= step]:
                del how[later]
        self._cached_how = {name: cached.before(step) for name, cached in self._cached_how.items()}
        if self._last_step is not None and self._last_step >= step:
            self._last_step = max((series.last for series in self._series.values()), default=None)


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


def load_run(folder: str | os.PathLike[str], rank: int = 0) -> Run:
    """Open a run folder.

    Args:
        folder: The folder.
        rank: Whose readings, where several processes train together; :attr:`Run.ranks` says which there are.

    Raises:
        NotARunError: if ``folder`` holds no run.
    """
    return Run(folder, rank)
