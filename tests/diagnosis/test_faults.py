"""Real trainings, broken in one way each: the fault is found, and healthy ones that come close stay silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit_lite import Cockpit
from tests.diagnosis.faults import BROKEN, HEALTHY, Training
from tests.diagnosis.histories import readable


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cockpit, "_write_results", lambda self: None)


CASES = [
    pytest.param(name, training, id=f"{name}-{number}") for name, cases in BROKEN.items() for number, training in enumerate(cases)
]


@pytest.mark.parametrize(("fault", "training"), CASES)
def test_the_fault_is_found(fault: str, training: Training, tmp_path: Path) -> None:
    findings = training.findings(tmp_path / "run")
    assert fault in [alert.name for alert in findings]
    readable(next(alert for alert in findings if alert.name == fault))


@pytest.mark.parametrize("name", HEALTHY)
def test_silent_on_healthy_trainings(name: str, tmp_path: Path) -> None:
    assert [str(alert) for alert in HEALTHY[name].findings(tmp_path / "run") if alert.severity != "note"] == []


def test_the_first_cause_comes_first(tmp_path: Path) -> None:
    """Consequences stand behind their cause, however early they are noticed."""
    for number, fault in enumerate(("exploding-recurrence", "softmax-twice", "inputs-not-normalised", "symmetric-init")):
        findings = BROKEN[fault][0].findings(tmp_path / f"{number}")
        assert findings[0].name == fault, [alert.name for alert in findings]
