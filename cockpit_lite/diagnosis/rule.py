"""The contract of a rule: readings in, an alert out. Knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from cockpit_lite.alert import Alert, Severity
from cockpit_lite.diagnosis.history import History
from cockpit_lite.watchdog import PATIENCE


class Rule:
    """Base class. A rule sees the readings up to now and raises at most one alert a call.

    Attributes:
        code: ``"CL"`` and three digits, given once, never reused.
        name: The fault's name, also ``Alert.name``; given once, never changed.
        severity: Of the alerts it raises.
        needs: Reading names without which it cannot check anything.
        follows_from: Names of faults that this one is a usual consequence of; findings are ranked by it.
        healthy: One sentence for the report when the rule found nothing.
        passes: Whether the fault may go away in the run, and :meth:`check` then says so by returning None: its alerts end.
        patience: Seconds after which a check that has not come back is ended and the rule switched off, as of an Instrument.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[tuple[str, ...]]
    healthy: ClassVar[str]
    follows_from: ClassVar[tuple[str, ...]] = ()
    passes: ClassVar[bool] = False
    patience: ClassVar[float | None] = PATIENCE

    def does_not_apply(self, history: History) -> str:
        """Return why the rule can say nothing about this kind of training, for the report, or "". Asked before the first step."""
        return ""

    def check(self, history: History) -> Alert | None:
        """Look at the readings up to ``history.step``; called after every measured step.

        Implementations keep no state that a second look at the same history would not give again, and do work that does not grow
        with the length of the run.
        """
        raise NotImplementedError

    def alert(
        self,
        history: History,
        cause: str,
        advice: str,
        *,
        where: tuple[str, ...] = (),
        evidence: Mapping[str, Any] | None = None,
        confidence: float = 1.0,
        step: int | None = None,
        severity: Severity | None = None,
    ) -> Alert:
        """Return an alert of this rule; ``severity`` where this one is milder than the rule's own."""
        return Alert(
            code=self.code,
            name=self.name,
            severity=self.severity if severity is None else severity,
            step=history.step if step is None else step,
            cause=cause,
            advice=advice,
            where=where,
            evidence=evidence or {},
            confidence=confidence,
        )
