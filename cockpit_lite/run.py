"""Run: a recorded (or still growing) training run, opened for reading. Knows no torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cockpit_lite import log_mirror, run_cache
from cockpit_lite.alert import Alert
from cockpit_lite.columns import Columns, Content
from cockpit_lite.run_log import LineReader, ReadingsReader, alerts_file, decode, ranks_in, read_info, readings_file

if TYPE_CHECKING:
    from cockpit_lite.report import Report


class Run:
    """The readings and alerts of one run.

    Attributes:
        folder: Where it is.
        rank: Of the process whose readings these are, where several train together.
        info: The content of ``run.json``.
        alerts: The alerts in the order they were raised.
        bad_lines: How many lines of the log could not be read and were skipped.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int = 0):
        self.folder = Path(folder)
        self.rank = rank
        self.info: dict[str, Any] = {}
        self.alerts: list[Alert] = []
        self._columns = Columns()
        self._bad_alerts = 0
        self._readings = ReadingsReader(self.folder / readings_file(rank))
        self._alerts = LineReader(self.folder / alerts_file(rank))
        known = self._take_cache()
        self._take_mirror()
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
            self._columns.add(line)
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
        return self._columns.unread + self._bad_alerts + self._readings.bad_lines + self._alerts.bad_lines

    @property
    def ranks(self) -> list[int]:
        """The processes that have written readings; alone or not, there is a rank 0."""
        return ranks_in(self.folder)

    @property
    def names(self) -> list[str]:
        """Names of all readings, sorted; layerwise ones are ``<reading>/<module or parameter>``."""
        return sorted(self._columns.series)

    @property
    def last_step(self) -> int | None:
        """The last step of which anything is known, or None for a run without steps."""
        return self._columns.last_step

    @property
    def seconds(self) -> float:
        """How long the run has taken so far."""
        return self._columns.seconds

    @property
    def not_measured(self) -> dict[str, str]:
        """Reading name -> why there is no number for it (at the moment)."""
        return self._columns.not_measured

    def layers(self, name: str) -> list[str]:
        """Return the module or parameter names for which ``<name>/...`` was recorded, in network order."""
        return [key.removeprefix(name + "/") for key in self._columns.series if key.startswith(name + "/")]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps (int64) and the values (float64) of a reading, sorted by step.

        The arrays are the run's own, so that asking again costs nothing, and cannot be written to: take a copy to change them.

        Raises:
            KeyError: if the run has no such reading; the message says why, where the run knows.
            ValueError: if its values are arrays of different shapes.
        """
        series = self._columns.series
        if name not in series:
            reason = self.not_measured.get(name)
            raise KeyError(f"no reading {name!r} in {self.folder}" + (f": not measured, because {reason}" if reason else ""))
        return series[name].arrays()

    def edition(self, name: str) -> int:
        """Return a number that changes when earlier values of a reading have changed, not when new ones were appended."""
        series = self._columns.series
        return series[name].edition if name in series else 0

    def how(self, name: str) -> Mapping[int, dict[str, Any]]:
        """Return step -> how the value was got, for the steps where it is more than exact."""
        return self._columns.how(name)

    def report(self) -> Report:
        """Return the diagnostic report of the run as it stands."""
        from cockpit_lite.report import build_report  # the report reads runs, not the other way round

        return build_report(self)

    def _take_cache(self) -> int:
        """Take over what an earlier reader left beside the log; return up to which byte that is."""
        content = run_cache.load(self._readings.path)
        if content is None:
            return 0
        self._columns.take([content])
        self._readings.go_on(content.offset)
        return content.offset

    def _take_mirror(self) -> None:
        """Take over what was written as arrays, too; lines in between are read."""
        ready: list[Content] = []
        for start, content in log_mirror.pieces(self._readings.path, self._readings.offset):
            if content.offset <= self._readings.offset:
                continue  # two trainings that wrote at once
            if start != self._readings.offset:
                self._columns.take(ready)
                ready = []
                until = start if start > self._readings.offset else content.offset
                for line in self._readings.new_lines(until=until):
                    self._columns.add(line)
            if start == self._readings.offset:
                ready.append(content)
                self._readings.go_on(content.offset)
        self._columns.take(ready)

    def _write_cache(self) -> None:
        """Write what is known; then it need not be held in memory, nor be beside the log in another way."""
        path = self._readings.path
        content = self._columns.content(self._readings.offset)
        content.unread += self._readings.bad_lines
        if not run_cache.save(path, content):
            return
        mapped = run_cache.load(path)
        if mapped is not None and mapped.offset == content.offset:
            self._columns = Columns()
            self._columns.take([mapped])
            self._columns.unread -= self._readings.bad_lines  # the reader still counts them
            if self.info.get("status", "running") != "running":
                log_mirror.remove(path)


def load_run(folder: str | os.PathLike[str], rank: int = 0) -> Run:
    """Open a run folder.

    Args:
        folder: The folder.
        rank: Whose readings, where several processes train together; :attr:`Run.ranks` says which there are.

    Raises:
        NotARunError: if ``folder`` holds no run.
    """
    return Run(folder, rank)
