"""Which findings came, went or stayed from the first run to the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cockpit_lite.alert import SEVERITIES, Alert
from cockpit_lite.report import Report

Change = Literal["appeared", "went", "differs", "stayed"]


@dataclass(frozen=True)
class Found:
    """What one run says of a fault.

    Attributes:
        state: "found", "passed" (looked for, and not there) or "not checked".
        alert: The first alert, where it was found.
        text: The same in words.
    """

    state: Literal["found", "passed", "not checked"]
    text: str
    alert: Alert | None = None


@dataclass(frozen=True)
class FindingRow:
    """A fault that at least one of the runs has.

    Attributes:
        code: Of the rule.
        name: Of the fault.
        severity: The worst of all runs.
        runs: What each run says.
        change: From the first run to the others: it "appeared" in all of them, "went" from all of them, "stayed" everywhere, or
            "differs". A run that could not check takes no part.
    """

    code: str
    name: str
    severity: str
    runs: tuple[Found, ...]
    change: Change


def finding_rows(reports: Sequence[Report]) -> list[FindingRow]:
    """Return one row for every fault that a run has: those that appeared first, then those that went, then the rest."""
    codes = list(dict.fromkeys(alert.code for report in reports for alert in report.findings))
    rows = [_row(code, reports) for code in codes]
    order: tuple[Change, ...] = ("appeared", "went", "differs", "stayed")
    return sorted(rows, key=lambda row: (order.index(row.change), SEVERITIES.index(row.severity)))


def _row(code: str, reports: Sequence[Report]) -> FindingRow:
    runs = tuple(_found(code, report) for report in reports)
    alerts = [found.alert for found in runs if found.alert is not None]
    severity = min((alert.severity for alert in alerts), key=SEVERITIES.index)
    return FindingRow(code, alerts[0].name, severity, runs, _change(runs))


def _found(code: str, report: Report) -> Found:
    alerts = [alert for alert in report.findings if alert.code == code]
    if alerts:
        first = min(alerts, key=lambda alert: alert.step)
        return Found("found", f"{first.severity} at {first.steps_text}", first)
    if any(check.code == code for check in report.passed):
        return Found("passed", "not there")
    reason = next((check.reason for check in report.not_checked if check.code == code), "this version has no such rule")
    return Found("not checked", f"not checked: {reason}")


def _change(runs: Sequence[Found]) -> Change:
    first, others = runs[0].state, {found.state for found in runs[1:]} - {"not checked"}
    if first == "passed" and others == {"found"}:
        return "appeared"
    if first == "found" and others == {"passed"}:
        return "went"
    if first == "found" and others == {"found"}:
        return "stayed"
    return "differs"
