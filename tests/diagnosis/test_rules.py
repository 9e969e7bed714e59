"""What holds for every rule, whatever it looks for."""

from __future__ import annotations

import math
import re

import pytest

from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.presets import resolve
from cockpit_lite.report.explain import explanation
from tests.diagnosis.histories import RAW, falling, first_alert

PARTS = ("What it is", "Why it is bad", "How to be sure", "How to mend it", "When to ignore it")

#: All that any rule asks for, and what the derived readings are made of.
EVERYTHING = sorted(
    {*RAW, *(need for rule in RULES for need in rule.needs), "input_std_ratio", "input_mean_ratio", "weight_decay"}
)

every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)


@every_rule
def test_the_page_has_its_five_parts_in_order(rule: Rule) -> None:
    page = explanation(rule)
    places = [page.find(part) for part in PARTS]
    assert -1 not in places and places == sorted(places)
    assert re.fullmatch(r"CL\d{3}", rule.code) and re.fullmatch(r"[a-z0-9]+(-[a-z]+)*", rule.name)
    assert rule.healthy[0].isupper() and rule.healthy.endswith(".")


@every_rule
def test_what_it_needs_is_measured_by_the_standard_preset(rule: Rule) -> None:
    """Otherwise it is never checked for who leaves the defaults."""
    measured = {name for instrument in resolve("standard") for name in instrument.reading_names()}
    assert set(rule.needs) <= measured | {"validation_loss", "effective_rank"}  # of the user, and of the full preset


@every_rule
def test_silent_on_a_healthy_run(rule: Rule) -> None:
    layers = {f"layer{number}": 0.01 * 1.1**number for number in range(8)}
    assert first_alert(rule, 150, falling(2.3, 0.2), layers=layers) is None


@every_rule
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan])
def test_no_number_makes_it_fail(rule: Rule, value: float) -> None:
    """A rule that raises an exception is switched off: it must not, least of all on a broken run."""
    for broken in {*rule.needs, "loss", "learning_rate", "update_ratio"}:
        history = History({f"layer{number}.weight": (4, 4) for number in range(6)}, ["SGD"])
        for step in range(70):
            row = dict.fromkeys(EVERYTHING, 1.0)
            row[broken] = value if step > 30 else 1.0
            history.add(step, {**row, **{f"grad_norm/layer{number}.weight": row["grad_norm"] for number in range(6)}})
            if step in (0, 1, 31, 35, 69):
                rule.check(history)
    everywhere = History({}, ["SGD"])
    for step in range(70):
        everywhere.add(step, dict.fromkeys(EVERYTHING, value))
        rule.check(everywhere)


@every_rule
def test_a_second_look_gives_the_same_answer(rule: Rule) -> None:
    history = History(optimizers=["SGD"])
    for step in range(40):
        loss = math.nan if step > 30 else 1.0 + 40 * (step > 3)
        history.add(step, {"loss": loss, "update_ratio": 3.0, "grad_norm": 1.0, "update_size": 1.0})
    assert repr(rule.check(history)) == repr(rule.check(history))  # of the text, since NaN does not equal itself
