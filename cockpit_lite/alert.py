"""Alert: one finding about a training run, with its cause, evidence and cure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

#: From worst to mildest; reports list findings in this order.
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Alert:
    """What a rule found.

    Attributes:
        code: Stable identifier such as ``"CL201"``; given once, never reused.
        name: Stable readable name such as ``"exploding-gradients"``.
        severity: ``"error"`` training is broken or will not recover, ``"warning"`` it costs much,
            ``"note"`` worth knowing.
        step: Optimizer step (from 0) at which the finding was made.
        where: Module or parameter names concerned, the first being the most telling; empty: the whole run.
        evidence: Measured numbers and the thresholds they were compared with.
        cause: One or two sentences: what happens, in words and numbers.
        advice: What to do about it, with a number or a line of code where one can be computed.
        confidence: Between 0 and 1.
        until: The last step at which it was found, if it has gone away since; None: it has not, or cannot.
    """

    code: str
    name: str
    severity: Severity
    step: int
    cause: str
    advice: str
    where: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 1.0
    until: int | None = None

    def __str__(self) -> str:
        """Return the one line that is printed when the alert is raised."""
        where = f" in {self.where[0]}" if self.where else ""
        return f"{self.code} {self.name} at step {self.step}{where}: {self.cause}"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary, the line of ``alerts.jsonl``."""
        found = {**asdict(self), "where": list(self.where), "evidence": dict(self.evidence)}
        if self.until is None:
            del found["until"]  # said by a line of its own, when it is known
        return found

    @property
    def steps_text(self) -> str:
        """The steps in words: when it was found, and when it was over."""
        return f"step {self.step:,}" if self.until is None else f"step {self.step:,} to {self.until:,}, then over"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Alert:
        """Rebuild an alert from a line of ``alerts.jsonl``; fields of newer versions are ignored.

        Raises:
            ValueError: if a field is missing or has the wrong type.
        """
        try:
            severity = data["severity"]
            if severity not in SEVERITIES:
                raise ValueError(f"unknown severity {severity!r}")
            return cls(
                code=str(data["code"]),
                name=str(data["name"]),
                severity=severity,
                step=int(data["step"]),
                cause=str(data["cause"]),
                advice=str(data["advice"]),
                where=tuple(str(name) for name in data.get("where", ())),
                evidence=dict(data.get("evidence", {})),
                confidence=float(data.get("confidence", 1.0)),
                until=None if data.get("until") is None else int(data["until"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not an alert: {error}") from error
