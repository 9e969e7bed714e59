"""Recorder: readings on the host become lines of the run log, history for the rules, and alerts. Knows no torch tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.isolation import warn
from cockpit_lite.run_log import RunWriter
from cockpit_lite.transfer import HostTransfer, Row


class Recorder:
    """Takes one row a step.

    Args:
        writer: Where the run is logged.
        rules: What is checked after every measured step.
        on_alert: The user's callback, called once with each alert.
        announce: Prints an alert.
    """

    block_size = 256
    block_seconds = 1.0

    def __init__(
        self,
        writer: RunWriter,
        rules: Sequence[Rule],
        on_alert: Callable[[Alert], Any] | None,
        announce: Callable[[Alert], None],
    ):
        self.alerts: list[Alert] = []
        self.history = History()
        self._writer: RunWriter | None = writer
        self._rules = list(rules)
        self._on_alert = on_alert
        self._announce = announce
        self._transfer = HostTransfer()
        self._reasons: dict[str, str] = {}
        self._block: list[Row] = []
        self._block_began = 0.0

    def take(self, row: Row) -> None:
        """Record one step; its tensors may still be on their way from the device."""
        for ready in self._transfer.submit(row):
            self._record(ready)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record what the user logs."""
        self._flush_block()
        self.history.add(step, values)
        self._write(lambda writer: writer.step(step, values))

    def flush(self) -> None:
        """Put everything that has arrived on disk."""
        for row in self._transfer.ready():
            self._record(row)
        self._flush_block()
        self._write(lambda writer: writer.flush())

    def close(self, **final: Any) -> None:
        """Record everything that is still on its way and close the log."""
        for row in self._transfer.ready(wait=True):
            self._record(row)
        self._flush_block()
        self._write(lambda writer: writer.close(**final))

    def _record(self, row: Row) -> None:
        if not row.measured:
            self._add_to_block(row)
            return
        self._flush_block()
        self.history.add(row.step, row.values)
        self._write(lambda writer: writer.step(row.step, row.values, row.how))
        # A reading that was measured has no reason any more; the others are written when they change.
        changed = {name: reason for name, reason in row.reasons.items() if self._reasons.get(name) != reason}
        changed.update({name: "" for name in self._reasons if name in row.values})
        if changed:
            self._write(lambda writer: writer.not_measured(row.step, changed))
            self._reasons = {name: reason for name, reason in {**self._reasons, **changed}.items() if reason}
        self._check_rules()

    def _add_to_block(self, row: Row) -> None:
        now = time.monotonic()
        if self._block and self._block[-1].values.keys() != row.values.keys():
            self._flush_block()
        if not self._block:
            self._block_began = now
        self._block.append(row)
        self.history.add(row.step, row.values)
        if len(self._block) >= self.block_size or now - self._block_began >= self.block_seconds:
            self._flush_block()
        loss = row.values.get("loss", 0.0)
        if not math.isfinite(loss):  # the one thing that cannot wait for the next measured step
            self._check_rules()

    def _flush_block(self) -> None:
        rows, self._block = self._block, []
        if rows:
            columns = {name: [row.values[name] for row in rows] for name in rows[0].values}
            self._write(lambda writer: writer.block([row.step for row in rows], columns))

    def _write(self, action: Callable[[RunWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except Exception as error:
            folder, self._writer = self._writer.folder, None
            warn(f"The run log in {folder} cannot be written any more and was switched off; training goes on.", error)

    def _check_rules(self) -> None:
        for rule in tuple(self._rules):
            try:
                alert = rule.check(self.history)
            except Exception as error:
                self._rules.remove(rule)
                warn(f"The rule {rule.code} {rule.name} failed and was switched off.", error)
                continue
            if alert is not None:
                self._rules.remove(rule)  # one alert a fault, not one a step
                self._raise(alert)

    def _raise(self, alert: Alert) -> None:
        self.alerts.append(alert)
        self._flush_block()
        self._write(lambda writer: writer.alert(alert.to_dict()))
        try:
            self._announce(alert)
        except Exception as error:
            warn("An alert could not be printed.", error)
        if self._on_alert is not None:
            try:
                self._on_alert(alert)
            except Exception as error:
                self._on_alert = None
                warn("on_alert raised an exception and was switched off.", error)
