"""A finding begins and ends: live, in the log, and in the report."""

from __future__ import annotations

from pathlib import Path

from cockpit_lite import Alert, load_run
from cockpit_lite.diagnosis.episodes import MOST_EPISODES, PATIENCE
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.recorder import Recorder
from cockpit_lite.run_log import RunWriter
from cockpit_lite.transfer import Row


class Passing(Rule):
    """Finds a loss above one, which may come down again."""

    code, name, severity, needs, healthy = "CL901", "loss-above-one", "error", ("loss",), "The loss stayed below one."
    passes = True

    def check(self, history: History) -> Alert | None:
        loss = history.last("loss") or 0.0
        return self.alert(history, f"The loss is {loss}.", "Lower it.", evidence={"loss": loss}) if loss > 1 else None


class Lasting(Passing):
    """The same, but what it finds is never mended."""

    code, name, passes = "CL902", "lasting", False


def run_of(folder: Path, losses: list[float], rule: Rule, told: list[Alert]) -> Recorder:
    recorder = Recorder(RunWriter(folder, {"shapes": {}}), [rule], told.append, lambda alert: None)
    for step, loss in enumerate(losses):
        recorder.take(Row(step, {"loss": loss}))
    recorder.close(status="completed", steps=len(losses))
    return recorder


def test_it_ends_when_it_was_not_found_for_a_while(tmp_path: Path) -> None:
    told: list[Alert] = []
    losses = [0.5] * 3 + [2.0] * 4 + [0.5] * (PATIENCE - 1) + [2.0] + [0.5] * PATIENCE + [0.5] * 5
    recorder = run_of(tmp_path / "run", losses, Passing(), told)
    last = 3 + 4 + PATIENCE - 1  # a short silence does not end it
    assert [(alert.step, alert.until) for alert in recorder.alerts] == [(3, last)]
    assert [(alert.step, alert.until) for alert in told] == [(3, None)]  # told once, when it began
    run = load_run(tmp_path / "run")
    assert run.alerts == recorder.alerts and run.bad_lines == 0
    assert f"step 3 to {last}, then over" in str(run.report())


def test_it_may_come_back_but_not_for_ever(tmp_path: Path) -> None:
    told: list[Alert] = []
    recorder = run_of(tmp_path / "run", ([2.0] * 2 + [0.5] * PATIENCE) * (MOST_EPISODES + 2), Passing(), told)
    period = PATIENCE + 2
    begins = [(period * number, period * number + 1) for number in range(MOST_EPISODES)]
    assert [(alert.step, alert.until) for alert in recorder.alerts] == begins
    assert load_run(tmp_path / "run").alerts == recorder.alerts and len(told) == MOST_EPISODES


def test_what_goes_on_has_no_end(tmp_path: Path) -> None:
    assert [alert.until for alert in run_of(tmp_path / "open", [0.5] + [2.0] * 30, Passing(), []).alerts] == [None]
    lasting = run_of(tmp_path / "lasting", [2.0] + [0.5] * 30, Lasting(), []).alerts
    assert [(alert.step, alert.until) for alert in lasting] == [(0, None)]


def test_an_end_survives_its_line() -> None:
    alert = Alert("CL901", "name", "note", 3, "Cause.", "Advice.", until=9)
    assert Alert.from_dict(alert.to_dict()) == alert
    assert "until" not in Alert("CL901", "name", "note", 3, "Cause.", "Advice.").to_dict()
