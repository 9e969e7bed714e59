"""Ranking: the first cause first, its consequences after it."""

from __future__ import annotations

from collections.abc import Iterable

from cockpit_lite.alert import SEVERITIES, Alert
from cockpit_lite.diagnosis.rule import Rule


def rank(alerts: Iterable[Alert], rules: Iterable[Rule]) -> list[Alert]:
    """Return the alerts by severity, then step, then confidence, but consequences after their causes.

    What a fault usually follows from is in :attr:`Rule.follows_from <cockpit_lite.diagnosis.rule.Rule.follows_from>`.
    A consequence may be noticed before its cause, since the cause often takes more steps to be sure of.
    """
    alerts = sorted(alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.step, -alert.confidence))
    causes = {rule.name: set(rule.follows_from) for rule in rules}
    ranked: list[Alert] = []
    while alerts:
        open_names = {alert.name for alert in alerts}
        # The first whose causes are all ranked already; if rules name each other in a circle, simply the first.
        chosen = next((alert for alert in alerts if not causes.get(alert.name, set()) & open_names), alerts[0])
        ranked.append(chosen)
        alerts.remove(chosen)
    return ranked
