"""Rules: readings in, alerts with cause, evidence and advice out; one file a group of faults. Knows no torch."""

from __future__ import annotations

from cockpit_lite.diagnosis import attention, data, depth, loss_inputs, optimizer, parallel, precision, samples, units, wiring
from cockpit_lite.diagnosis.loss_and_output import NonFinite
from cockpit_lite.diagnosis.recurrence import ExplodingRecurrence
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.signal_propagation import ExplodingGradients, VanishingGradients
from cockpit_lite.diagnosis.step_size import IllConditioning, LearningRateTooHigh, LearningRateTooLow
from cockpit_lite.isolation import warn
from cockpit_lite.plugins import RULES as PLUGINS
from cockpit_lite.plugins import plugins

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
            *depth.RULES,
            LearningRateTooHigh(),
            LearningRateTooLow(),
            IllConditioning(),
            *optimizer.RULES,
            *data.RULES,
            *samples.RULES,
            *precision.RULES,
            *attention.RULES,
            *parallel.RULES,
        ),
        key=lambda rule: rule.code,
    )
)


def known_rules() -> tuple[Rule, ...]:
    """Return all rules, those of plug-ins included."""
    known = {rule.code: rule for rule in RULES}
    for name, make in plugins(PLUGINS).items():
        try:
            rule: Rule = make()
            if rule.code in known:
                raise ValueError(f"the code {rule.code} is taken by {known[rule.code].name}")
            known[rule.code] = rule
        except Exception as error:
            warn(f"The rule of the plug-in {name!r} is left out.", error)
    return tuple(sorted(known.values(), key=lambda rule: rule.code))


__all__ = ["RULES", "Rule", "known_rules"]
