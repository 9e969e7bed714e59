"""Parquet: readings as a compressed table that data frames of every language read. Needs ``cockpit-lite[parquet]``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.integrations.need import need
from cockpit_lite.sink import Sink

#: Readings that are held before they are written as a group of rows.
GROUP = 100_000


class ParquetSink(Sink):
    """Writes ``readings.parquet`` with the columns ``step``, ``name`` and ``value``, a row a reading, as the CSV has.

    What the run is and its alerts are the file's metadata, as JSON: ``cockpit_lite.run`` and ``cockpit_lite.alerts``. The file
    can be read when the run has ended; of one that crashed, ``cockpit-lite export RUN readings.parquet`` makes it.

    Args:
        file: Where to. Default: ``readings.parquet`` in the run folder.
        layers: Readings of single layers, too.
    """

    name = "parquet"

    def __init__(self, file: str | Path | None = None, layers: bool = True):
        super().__init__(layers)
        self._file = file
        self._writer: Any = None
        self._rows: tuple[list[int], list[str], list[float]] = ([], [], [])
        self._alerts: list[dict[str, Any]] = []

    def open(self, folder: Path, info: Mapping[str, Any]) -> None:
        self._arrow = need("pyarrow", "parquet")
        arrow = self._arrow
        columns = [("step", arrow.int64()), ("name", arrow.dictionary(arrow.int32(), arrow.string())), ("value", arrow.float64())]
        self._schema = arrow.schema(columns)
        self._info = dict(info)
        self._writer = need("pyarrow.parquet", "parquet").ParquetWriter(
            str(self._file or folder / "readings.parquet"), self._schema, compression="zstd"
        )

    def step(self, step: int, values: Mapping[str, float]) -> None:
        steps, names, numbers = self._rows
        steps.extend([step] * len(values))
        names.extend(values)
        numbers.extend(values.values())
        if len(steps) >= GROUP:
            self._write()

    def alert(self, alert: Alert) -> None:
        self._alerts.append(alert.to_dict())

    def close(self) -> None:
        self._write()
        told = {"cockpit_lite.run": self._info, "cockpit_lite.alerts": self._alerts}
        self._writer.add_key_value_metadata({key: json.dumps(value, default=str) for key, value in told.items()})
        self._writer.close()

    def _write(self) -> None:
        arrays = [self._arrow.array(column, field.type) for column, field in zip(self._rows, self._schema, strict=True)]
        if len(arrays[0]):
            self._writer.write_table(self._arrow.table(arrays, schema=self._schema))
        self._rows = ([], [], [])
