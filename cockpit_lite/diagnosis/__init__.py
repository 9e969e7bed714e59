"""Rules: readings in, alerts with cause, evidence and advice out; one file a group of faults. Knows no torch."""

from __future__ import annotations

from cockpit_lite.diagnosis import data, loss_inputs, optimizer, precision, units, wiring
from cockpit_lite.diagnosis.loss_and_output import NonFinite
from cockpit_lite.diagnosis.recurrence import ExplodingRecurrence
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.signal_propagation import ExplodingGradients, VanishingGradients
from cockpit_lite.diagnosis.step_size import IllConditioning, LearningRateTooHigh, LearningRateTooLow

#: All rules that are checked, in the order of their codes.
RULES: tuple[Rule, ...] = tuple(
    sorted(
        (
            *wiring.RULES,
            *loss_inputs.RULES,
            NonFinite(),
            VanishingGradients(),
            ExplodingGradients(),
            ExplodingRecurrence(),
            *units.RULES,
            LearningRateTooHigh(),
            LearningRateTooLow(),
            IllConditioning(),
            *optimizer.RULES,
            *data.RULES,
            *precision.RULES,
        ),
        key=lambda rule: rule.code,
    )
)

__all__ = ["RULES", "Rule"]
