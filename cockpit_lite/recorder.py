"""Recorder: readings on the host become lines of the run log, history for the rules, and alerts. Knows no torch tensors."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.episodes import Episodes
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.ignore import Ignored
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.isolation import warn
from cockpit_lite.resume import Earlier
from cockpit_lite.run_log import RunWriter
from cockpit_lite.sink import Sink
from cockpit_lite.transfer import HostTransfer, Row
from cockpit_lite.watchdog import Watchdog

#: Seconds of processor time that all rules together may take at a step; a rule that takes half of it is switched off.
LONGEST_CHECK = 1.0


class Recorder:
    """Takes rows of readings.

    Args:
        writer: Where the run is logged.
        rules: What is checked after every measured step.
        on_alert: The user's callback, called once with each alert.
        announce: Prints an alert.
        ignored: Findings that are not wanted.
        sinks: Where readings and alerts go besides the log.
        earlier: The run that is gone on with.
        watchdog: What ends a rule or a sink that hangs; closed with the log.
    """

    def __init__(
        self,
        writer: RunWriter,
        rules: Sequence[Rule],
        on_alert: Callable[[Alert], Any] | None,
        announce: Callable[[Alert], None],
        ignored: Ignored | None = None,
        sinks: Sequence[Sink] = (),
        earlier: Earlier | None = None,
        watchdog: Watchdog | None = None,
    ):
        self.watchdog = Watchdog() if watchdog is None else watchdog
        self.alerts: list[Alert] = []
        self.history = History.of_run(writer.info)
        if earlier is not None:
            self.alerts.extend(earlier.alerts)
            for steps, values in earlier.parts:
                if isinstance(steps, int):
                    self.history.add(steps, values)
                else:
                    self.history.add_block(steps, values)
        self._writer: RunWriter | None = writer
        self._all_rules = tuple(rules)
        self._ignored = Ignored((), rules) if ignored is None else ignored
        silent = {rule.code: reason for rule in rules if (reason := rule.does_not_apply(self.history))}
        silent.update(dict.fromkeys(sorted(self._ignored.codes), "it is ignored, as asked for"))
        said = {alert.code for alert in self.alerts}
        self._rules = [rule for rule in rules if rule.code not in silent and rule.code not in said]
        self._on_alert = on_alert
        self._announce: Callable[[Alert], None] | None = announce
        self._transfer = HostTransfer()
        self._episodes = Episodes()
        self._reasons: dict[str, str] = {}
        self._slow = self._history_failed = False
        self._sinks = list(sinks)
        self._tell_sinks(lambda sink: sink.open(writer.folder, writer.info), "open")
        if silent:
            self._write(lambda writer: writer.not_measured(0, silent))

    def take(self, row: Row) -> None:
        """Record a row; its tensors may still be on their way from the device."""
        for ready in self._transfer.submit(row):
            self._record(ready)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record what the user logs."""
        self._remember(lambda history: history.add(step, values))
        self._write(lambda writer: writer.step(step, values))
        self._tell_sinks(lambda sink: sink.take(step, values))

    def flush(self) -> None:
        """Put everything that has arrived on disk."""
        for row in self._transfer.ready():
            self._record(row)
        self._write(lambda writer: writer.flush())

    def close(self, **final: Any) -> None:
        """Record everything that is still on its way and close the log."""
        for row in self._transfer.ready(wait=True):
            self._record(row)
        self._write(lambda writer: writer.close(**final))
        self._writer = None
        self._tell_sinks(lambda sink: sink.close(), "close")
        self._sinks = []
        self.watchdog.close()

    def _record(self, row: Row) -> None:
        if row.steps is not None:
            steps = row.steps
            self._remember(lambda history: history.add_block(steps, row.values))
            self._write(lambda writer: writer.block(steps, row.values))
            self._tell_sinks(lambda sink: _take_block(sink, steps, row.values))
            if not all(
                map(math.isfinite, row.values.get("loss", ()))
            ):  # the one thing that cannot wait for the next measured step
                self._check_rules()
            return
        self._remember(lambda history: history.add(row.step, row.values))
        self._write(lambda writer: writer.step(row.step, row.values, row.how))
        self._tell_sinks(lambda sink: sink.take(row.step, row.values))
        # A reading that was measured has no reason any more; the others are written when they change.
        reasons = {name: reason for name, reason in row.reasons.items() if name not in row.values}
        changed = {name: reason for name, reason in reasons.items() if self._reasons.get(name) != reason}
        changed.update({name: "" for name in self._reasons if name in row.values})
        if changed:
            self._write(lambda writer: writer.not_measured(row.step, changed))
            self._reasons = {name: reason for name, reason in {**self._reasons, **changed}.items() if reason}
        self._check_rules()

    def _remember(self, action: Callable[[History], None]) -> None:
        if self._history_failed:
            return
        try:
            action(self.history)
        except Exception as error:
            self._history_failed, self._rules = True, []
            warn("The rules could not be shown what was measured, and were switched off; it is in the log.", error)

    def _write(self, action: Callable[[RunWriter], None]) -> None:
        if self._writer is None:
            return
        try:
            action(self._writer)
        except Exception as error:
            folder = self._writer.folder
            self._writer.abandon()
            self._writer = None
            warn(f"The run log in {folder} cannot be written any more and was switched off; training goes on.", error)

    def _tell_sinks(self, action: Callable[[Sink], None], what: str = "take") -> None:
        for sink in tuple(self._sinks):
            try:
                self.watchdog.call(sink, (id(sink), what), partial(action, sink))
            except Exception as error:
                self._sinks.remove(sink)
                warn(f"The sink {sink.name!r} failed and was switched off; training and the run's own log go on.", error)

    def _check_rules(self) -> None:
        found: list[Alert] = []
        begin = time.perf_counter()  # asking for processor time takes as long as a rule, so only where that may matter
        for rule in tuple(self._rules):
            began = time.thread_time() if self._slow else 0.0
            try:
                alert = self.watchdog.call(rule, rule.code, partial(rule.check, self.history))
                if self._slow and (seconds := time.thread_time() - began) > LONGEST_CHECK / 2:
                    raise TimeoutError(f"it took {seconds:.1f} s")
            except Exception as error:
                self._rules.remove(rule)
                reason = f"the rule failed and was switched off ({type(error).__name__}: {error})"
                self._not_checked(rule, reason)
                warn(f"The rule {rule.code} {rule.name} failed and was switched off.", error)
                continue
            alert = None if alert is None else self._ignored.wanted(alert)
            if self._episodes.is_open(rule):
                over = self._episodes.look(rule, alert is not None, self.history.step)
                if over is not None:
                    self._end(rule, *over)
            elif alert is not None:
                found.append(alert)
        self._slow = time.perf_counter() - begin > LONGEST_CHECK  # which one it was shows the next time
        if not found:
            return
        by_code = {rule.code: rule for rule in self._rules}
        for alert in rank(found, self._all_rules):
            rule = by_code[alert.code]
            self._episodes.begin(rule, len(self.alerts), max(alert.step, self.history.step))
            if not self._episodes.is_open(rule):
                self._rules.remove(rule)  # one alert a fault, not one a step
            self._raise(alert)

    def _end(self, rule: Rule, place: int, last: int) -> None:
        """What an alert was about has gone away; it may come back."""
        alert = self.alerts[place] = dataclasses.replace(self.alerts[place], until=last)
        self._write(lambda writer: writer.alert({"code": alert.code, "step": alert.step, "until": last}))
        if not self._episodes.may_begin_again(rule):
            self._rules.remove(rule)

    def _not_checked(self, rule: Rule, reason: str) -> None:
        self._write(lambda writer: writer.not_measured(self.history.step, {rule.code: reason}))

    def _raise(self, alert: Alert) -> None:
        self.alerts.append(alert)
        self._write(lambda writer: writer.alert(alert.to_dict()))
        self._tell_sinks(lambda sink: sink.alert(alert), "alert")
        if self._announce is not None:
            try:
                self._announce(alert)
            except Exception as error:
                self._announce = None
                warn("Alerts cannot be printed; they are in the log.", error)
        if self._on_alert is not None:
            try:
                self._on_alert(alert)
            except Exception as error:
                self._on_alert = None
                warn("on_alert raised an exception and was switched off.", error)


def _take_block(sink: Sink, steps: Sequence[int], values: Mapping[str, Sequence[Any]]) -> None:
    for position, step in enumerate(steps):
        sink.take(step, {name: column[position] for name, column in values.items()})
