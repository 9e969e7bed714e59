"""CSV: readings as a table for a spreadsheet or a data frame, one line a reading. Needs nothing."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from cockpit_lite.alert import Alert
from cockpit_lite.sink import Sink


class CsvSink(Sink):
    """Writes ``readings.csv`` with the columns ``step,name,value`` and ``alerts.csv`` into the run folder.

    A line a reading, since on different steps different things are measured; ``pandas.read_csv(...).pivot(index="step",
    columns="name", values="value")`` makes a column of each.

    Args:
        file: Where to; the alerts then go to a file of that name with ``.alerts`` before the ending.
        layers: Readings of single layers, too.
    """

    name = "csv"

    def __init__(self, file: str | Path | None = None, layers: bool = True):
        super().__init__(layers)
        self._file = None if file is None else Path(file)
        self._files: list[TextIO] = []

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        paths = [folder / "readings.csv", folder / "alerts.csv"]
        if self._file is not None:
            paths = [self._file, self._file.with_suffix(f".alerts{self._file.suffix}")]
        self._files = [path.open("w", encoding="utf-8", newline="") for path in paths]
        self._readings, self._alerts = map(csv.writer, self._files)
        self._readings.writerow(["step", "name", "value"])
        self._alerts.writerow(["step", "code", "name", "severity", "where", "cause", "advice"])

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self._readings.writerows((step, name, repr(value)) for name, value in values.items())

    def alert(self, alert: Alert) -> None:
        where = " ".join(alert.where)
        self._alerts.writerow([alert.step, alert.code, alert.name, alert.severity, where, alert.cause, alert.advice])
        for file in self._files:  # an alert is when somebody looks
            file.flush()

    def close(self) -> None:
        for file in self._files:
            file.close()
