"""From readings to log and alerts: whatever fails on the way is switched off, said once, and never raised."""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cockpit_lite import Alert, CockpitWarning, load_run
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.recorder import Recorder
from cockpit_lite.run_log import RunWriter
from cockpit_lite.transfer import Row


class LossAbove(Rule):
    """Finds a loss above one."""

    code, name, severity, needs, healthy = "CL901", "loss-above-one", "error", ("loss",), "The loss stayed below one."

    def __init__(self) -> None:
        self.looks = 0

    def check(self, history: History) -> Alert | None:
        self.looks += 1
        loss = history.last("loss")
        return self.alert(history, f"The loss is {loss}.", "Lower it.") if loss is not None and not loss <= 1.0 else None


class Consequence(LossAbove):
    """The same, as a consequence of it."""

    code, name, follows_from = "CL902", "consequence", ("loss-above-one",)


class Broken(LossAbove):
    """Fails."""

    code, name = "CL903", "broken"

    def check(self, history: History) -> Alert | None:
        self.looks += 1
        raise ZeroDivisionError("in a rule")


class Setting:
    """A recorder with everything around it."""

    def __init__(self, folder: Path, *rules: Rule, on_alert: Callable[[Alert], Any] | None = None):
        self.announced: list[Alert] = []
        self.writer = RunWriter(folder, {"shapes": {}})
        self.recorder = Recorder(self.writer, rules, on_alert, self.announced.append)

    def step(self, step: int, loss: float) -> None:
        self.recorder.take(Row(step, {"loss": torch.tensor(loss)}))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Setting]]:
    made: list[Setting] = []

    def make_one(*rules: Rule, **options: Any) -> Setting:
        made.append(Setting(tmp_path / f"run{len(made)}", *rules, **options))
        return made[-1]

    yield make_one
    for setting in made:
        setting.writer.abandon()


@contextmanager
def one_warning(words: str) -> Iterator[None]:
    """Exactly one CockpitWarning, with these words."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [(one.category, words in str(one.message)) for one in caught] == [(CockpitWarning, True)]


def test_rows_reach_the_log_and_the_history(make: Callable[..., Setting]) -> None:
    setting = make()
    row = Row(0, {"loss": torch.tensor(0.5), "vector": torch.tensor([1.0, 2.0])})
    row.how["loss"] = {"kind": "estimated", "standard_error": torch.tensor(0.1)}
    setting.recorder.take(row)
    setting.recorder.take(Row(2, {"loss": [0.25, 0.125]}, steps=[1, 2]))
    setting.recorder.log(2, {"validation_loss": 3.0})
    assert list(setting.recorder.history.values("loss")) == [0.5, 0.25, 0.125]
    setting.recorder.close(status="completed")
    run = load_run(setting.writer.folder)
    assert run.series("loss")[1].tolist() == [0.5, 0.25, 0.125]
    assert run.series("validation_loss")[0].tolist() == [2]
    assert run.how("loss")[0]["standard_error"] == pytest.approx(0.1)
    assert run.info["status"] == "completed"


def test_reasons_are_written_when_they_change(make: Callable[..., Setting]) -> None:
    setting = make()
    for step, reason in enumerate(["one sample", "one sample", "no loss", None, None, "no loss"]):
        row = Row(step, {} if reason else {"norm_test": 1.0})
        if reason:
            row.reasons["norm_test"] = reason
        setting.recorder.take(row)
    setting.recorder.close()
    lines = (setting.writer.folder / "readings.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum("not_measured" in line for line in lines) == 4
    assert load_run(setting.writer.folder).not_measured == {"norm_test": "no loss"}


def test_one_alert_a_fault_the_cause_first(make: Callable[..., Setting]) -> None:
    heard: list[Alert] = []
    setting = make(Consequence(), LossAbove(), on_alert=heard.append)
    for step, loss in enumerate([0.5, 2.0, 3.0, 0.5, 4.0]):
        setting.step(step, loss)
    assert [(alert.code, alert.step) for alert in setting.recorder.alerts] == [("CL901", 1), ("CL902", 1)]
    assert heard == setting.announced == setting.recorder.alerts
    assert [alert.code for alert in load_run(setting.writer.folder).alerts] == ["CL901", "CL902"]  # on disk at once


def test_a_loss_that_is_not_finite_between_measured_steps_is_looked_at_in_time(make: Callable[..., Setting]) -> None:
    rule = LossAbove()
    setting = make(rule)
    setting.recorder.take(Row(1, {"loss": [0.5, 0.5]}, steps=[0, 1]))
    assert rule.looks == 0  # nothing was measured
    setting.recorder.take(Row(3, {"loss": [0.5, float("nan")]}, steps=[2, 3]))
    assert [alert.step for alert in setting.recorder.alerts] == [3]


def test_a_rule_that_raises_is_switched_off(make: Callable[..., Setting]) -> None:
    broken, rule = Broken(), LossAbove()
    setting = make(broken, rule)
    with one_warning("The rule CL903 broken failed and was switched off. (ZeroDivisionError: in a rule)"):
        for step in range(3):
            setting.step(step, 2.0)
    assert broken.looks == 1
    assert [alert.code for alert in setting.recorder.alerts] == ["CL901"]
    setting.recorder.close()
    assert "ZeroDivisionError: in a rule" in load_run(setting.writer.folder).not_measured["CL903"]


def test_a_rule_that_takes_too_long_is_switched_off(make: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(LossAbove):
        code, name = "CL904", "slow"

        def check(self, history: History) -> Alert | None:
            self.looks += 1
            until = time.thread_time() + 0.3
            while time.thread_time() < until:
                pass
            return None

    monkeypatch.setattr("cockpit_lite.recorder.LONGEST_CHECK", 0.2)
    slow, rule = Slow(), LossAbove()
    setting = make(slow, rule)
    with one_warning("The rule CL904 slow failed and was switched off. (TimeoutError: it took 0.3 s)"):
        for step in range(4):
            setting.step(step, 0.5)
    assert slow.looks == 2 and rule.looks == 4
    setting.recorder.close()
    assert "TimeoutError" in load_run(setting.writer.folder).not_measured["CL904"]


def test_an_on_alert_that_raises_is_switched_off(make: Callable[..., Setting]) -> None:
    calls: list[Alert] = []

    def on_alert(alert: Alert) -> None:
        calls.append(alert)
        raise KeyError("user code")

    setting = make(LossAbove(), Consequence(), on_alert=on_alert)
    with one_warning("on_alert raised an exception and was switched off. (KeyError: 'user code')"):
        setting.step(0, 2.0)
    assert len(calls) == 1 and len(setting.recorder.alerts) == len(setting.announced) == 2


def test_an_alert_that_cannot_be_printed_is_still_an_alert(tmp_path: Path) -> None:
    def announce(alert: Alert) -> None:
        raise BrokenPipeError("the terminal is gone")

    writer = RunWriter(tmp_path / "run", {})
    recorder = Recorder(writer, [LossAbove()], None, announce)
    with one_warning("Alerts cannot be printed; they are in the log."):
        recorder.take(Row(0, {"loss": 2.0}))
    recorder.close()
    assert len(recorder.alerts) == len(load_run(writer.folder).alerts) == 1


class FullDisk:
    """A file on a disk that has no more room; what it was is closed in the end."""

    def __init__(self, file: Any):
        self.file = file
        self.writes = 0

    def write(self, text: str) -> None:
        self.writes += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.file.close()
        self.flush()


def test_a_full_disk_switches_the_log_off_and_alerts_are_still_raised(
    make: Callable[..., Setting], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Alert] = []
    setting = make(LossAbove(), on_alert=heard.append)
    setting.step(0, 0.5)
    setting.recorder.flush()
    readings = setting.writer._readings
    monkeypatch.setattr(setting.writer, "_readings", FullDisk(readings))
    monkeypatch.setattr(setting.writer, "flush_interval", 0.0)
    with one_warning("cannot be written any more and was switched off; training goes on. (OSError: [Errno 28]"):
        for step in range(1, 5):
            setting.step(step, 0.5 * step)
        setting.recorder.log(4, {"validation_loss": 1.0})
        setting.recorder.flush()
        setting.recorder.close(status="completed")
    assert setting.writer._readings.writes == 1  # type: ignore[attr-defined]
    assert readings.closed and setting.writer._alerts.closed
    assert [alert.step for alert in heard] == [3]
    run = load_run(setting.writer.folder)
    assert run.series("loss")[0].tolist() == [0] and run.info.get("status", "running") == "running"


def test_nothing_is_raised_where_warnings_are_errors(make: Callable[..., Setting], caplog: pytest.LogCaptureFixture) -> None:
    def on_alert(alert: Alert) -> None:
        raise KeyError("user code")

    setting = make(Broken(), LossAbove(), on_alert=on_alert)
    setting.writer.abandon()  # so writing fails too
    setting.writer.flush_interval = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        setting.step(0, 2.0)
        setting.recorder.close()
    assert len(setting.recorder.alerts) == 1
    said = " ".join(record.getMessage() for record in caplog.records)
    assert all(words in said for words in ("The rule CL903", "The run log", "on_alert raised"))
