"""Rules: readings in, alerts with cause, evidence and advice out; one file a group of faults. Knows no torch."""

from __future__ import annotations

from cockpit_lite.diagnosis.rule import Rule

#: All rules that are checked, in the order of their codes.
RULES: tuple[Rule, ...] = ()
