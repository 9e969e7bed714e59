from __future__ import annotations

import math

import pytest

from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.loss_and_output import NonFinite
from tests.diagnosis.histories import falling, first_alert, history, readable

RULE = NonFinite()


def test_silent_on_a_healthy_run_and_without_readings() -> None:
    assert first_alert(RULE, 100, falling(2.3, 0.1)) is None
    assert RULE.check(History()) is None
    assert RULE.check(history(20, without=("loss", "grad_norm"))) is None


@pytest.mark.parametrize(("value", "words"), [(math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "minus infinity")])
def test_the_first_bad_step_is_named_even_when_seen_later(value: float, words: str) -> None:
    made = history(50, lambda step: value if step >= 31 else 1.5)
    alert = RULE.check(made)
    assert alert is not None and alert.step == 31 and words in alert.cause and "1.5" in alert.cause
    assert math.isnan(alert.evidence["loss"]) if math.isnan(value) else alert.evidence["loss"] == value
    readable(alert)


def test_whichever_broke_first_is_named() -> None:
    made = history(20, lambda step: math.nan if step >= 9 else 1.0, grad_norm=lambda step: math.inf if step >= 8 else 1.0)
    alert = RULE.check(made)
    assert alert is not None and alert.step == 8 and alert.cause.startswith("The gradient norm is infinite")


def test_the_first_value_may_be_bad_already() -> None:
    alert = RULE.check(history(1, math.nan))
    assert alert is not None and alert.step == 0 and "before" not in alert.cause
    readable(alert)


def test_the_layer_nearest_to_the_loss_is_named_unless_all_are_bad() -> None:
    alert = RULE.check(history(5, grad_norm=math.nan, layers={"a": math.nan, "b": math.nan, "c": 1.0}))
    assert alert is not None and alert.where == ("b.weight",)
    alert = RULE.check(history(5, grad_norm=math.nan, layers={"a": math.nan, "b": math.nan}))
    assert alert is not None and alert.where == ()


def test_found_in_a_block_of_untracked_steps() -> None:
    made = history(5)
    made.add_block([5, 6, 7], {"loss": [1.0, math.nan, math.nan]})
    alert = RULE.check(made)
    assert alert is not None and alert.step == 6
