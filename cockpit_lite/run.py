"""Run: a recorded (or still growing) training run, opened for reading. Knows no torch."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cockpit_lite.alert import Alert
from cockpit_lite.run_log import ALERTS_FILE, READINGS_FILE, LineReader, decode, read_info

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
        self._values: dict[str, tuple[list[int], list[Any]]] = {}
        self._how: dict[str, dict[int, dict[str, Any]]] = {}
        self._bad_lines = 0
        self._readings = LineReader(self.folder / READINGS_FILE)
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
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                self._bad_lines += 1
        for line in self._alerts.new_lines():
            changed = True
            try:
                self.alerts.append(Alert.from_dict({**line, "evidence": {k: decode(v) for k, v in line.get("evidence", {}).items()}}))
            except (TypeError, ValueError, AttributeError, OverflowError):
                self._bad_lines += 1
        return changed

    @property
    def bad_lines(self) -> int:
        """Number of log lines that could not be read and were skipped."""
        return self._bad_lines + self._readings.bad_lines + self._alerts.bad_lines

    @property
    def names(self) -> list[str]:
        """Names of all readings, sorted; layerwise ones are ``<reading>/<module or parameter>``."""
        return sorted(self._values)

    @property
    def last_step(self) -> int | None:
        """The last step of which anything is known, or None for a run without steps."""
        return max((max(steps) for steps, _ in self._values.values() if steps), default=None)

    def layers(self, name: str) -> list[str]:
        """Return the module or parameter names for which ``<name>/...`` was recorded, in network order."""
        return [key.removeprefix(name + "/") for key in self._values if key.startswith(name + "/")]

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps (int64) and the values (float64) of a reading, sorted by step.

        Raises:
            KeyError: if the run has no such reading; the message says why, where the run knows.
        """
        if name not in self._values:
            reason = self.not_measured.get(name)
            raise KeyError(f"no reading {name!r} in {self.folder}" + (f": not measured, because {reason}" if reason else ""))
        steps, values = self._values[name]
        if any(later <= earlier for earlier, later in itertools.pairwise(steps)):  # written twice or out of order: the last one counts
            steps, values = map(list, zip(*sorted(dict(zip(steps, values, strict=True)).items()), strict=True))
        return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)

    def how(self, name: str) -> dict[int, dict[str, Any]]:
        """Return step -> how the value was got, for the steps where it is more than exact."""
        return self._how.get(name, {})

    def report(self) -> Report:
        """Return the diagnostic report of the run as it stands."""
        from cockpit_lite.report import build_report  # the report reads runs, not the other way round

        return build_report(self)

    def _add(self, line: dict[str, Any]) -> None:
        reasons: dict[str, str] = line.get("not_measured", {})
        for name, reason in reasons.items():
            if reason:
                self.not_measured[str(name)] = str(reason)
            else:
                self.not_measured.pop(name, None)
        self.seconds = max(self.seconds, float(decode(line.get("time", 0.0))))
        if "steps" in line:
            steps = [int(step) for step in line["steps"]]
            columns = {str(name): decode(column) for name, column in line["values"].items()}
        else:
            steps = [int(line["step"])] if "values" in line else []
            columns = {str(name): [decode(value)] for name, value in line.get("values", {}).items()}
        if any(step.bit_length() > 63 for step in steps):
            raise ValueError("a step number is beyond any training")
        if any(len(column) != len(steps) or not all(map(_is_numeric, column)) for column in columns.values()):
            raise ValueError("a reading is not a number, or there are more values than steps")
        for name, column in columns.items():
            known_steps, known_values = self._values.setdefault(name, ([], []))
            known_steps.extend(steps)
            known_values.extend(column)
        for name, how in line.get("how", {}).items():
            self._how.setdefault(str(name), {})[int(line["step"])] = {key: decode(value) for key, value in how.items()}


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
