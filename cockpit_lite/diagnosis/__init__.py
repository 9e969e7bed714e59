"""Rules: readings in, alerts with cause, evidence and advice out; one file a group of faults. Knows no torch."""

from __future__ import annotations

from cockpit_lite.diagnosis.loss_and_output import NonFinite
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.signal_propagation import ExplodingGradients, VanishingGradients
from cockpit_lite.diagnosis.step_size import IllConditioning, LearningRateTooHigh, LearningRateTooLow
from cockpit_lite.diagnosis.wiring import RULES as WIRING

#: All rules that are checked, in the order of their codes.
RULES: tuple[Rule, ...] = (
    *WIRING,
    NonFinite(),
    VanishingGradients(),
    ExplodingGradients(),
    LearningRateTooHigh(),
    LearningRateTooLow(),
    IllConditioning(),
)

__all__ = ["RULES", "Rule"]
