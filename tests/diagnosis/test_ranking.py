from __future__ import annotations

from cockpit_lite.alert import Alert, Severity
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.diagnosis.rule import Rule


def rule(name: str, *follows_from: str) -> Rule:
    return type(name, (Rule,), {"name": name, "follows_from": follows_from})()


def alert(name: str, step: int = 0, severity: Severity = "error", confidence: float = 1.0) -> Alert:
    return Alert("CL999", name, severity, step, "Cause.", "Advice.", confidence=confidence)


def names(alerts: list[Alert]) -> list[str]:
    return [alert.name for alert in alerts]


def test_by_severity_then_step_then_confidence() -> None:
    mild = [alert("n", 0, "note"), alert("w", 0, "warning")]
    grave = [alert("late", 9), alert("unsure", 3, confidence=0.5), alert("sure", 3)]
    assert names(rank(mild + grave, [])) == ["sure", "unsure", "late", "w", "n"]
    assert rank([], []) == []


def test_a_consequence_comes_after_its_cause_even_if_noticed_before() -> None:
    rules = [rule("nan", "blow-up"), rule("blow-up", "rate"), rule("rate")]
    found = [alert("nan", 1), alert("blow-up", 5), alert("rate", 9, "warning")]
    assert names(rank(found, rules)) == ["rate", "blow-up", "nan"]
    assert names(rank([found[0], found[2]], rules)) == ["nan", "rate"]  # not linked without the one between
    assert names(rank([found[0]], rules)) == ["nan"]


def test_rules_that_name_each_other_are_ranked_all_the_same() -> None:
    rules = [rule("a", "b"), rule("b", "a"), rule("self", "self")]
    assert names(rank([alert("b", 2), alert("a", 1)], rules)) == ["a", "b"]
    assert names(rank([alert("self", 3)], rules)) == ["self"]


def test_what_a_rule_follows_from_is_a_rule() -> None:
    known = {rule.name for rule in RULES}
    assert all(set(rule.follows_from) <= known - {rule.name} for rule in RULES)
    assert len({rule.code for rule in RULES}) == len(known) == len(RULES)
