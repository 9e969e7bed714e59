"""Labels that are learnt by heart, validation losses that stand still, decay, schedules and units: histories that show them."""

from __future__ import annotations

import math

import pytest

from cockpit_lite.diagnosis.data import LabelsUnrelated, Overfitting
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.optimizer import LearningRateSchedule, WeightDecayTooStrong
from cockpit_lite.diagnosis.signal_propagation import ExplodingGradients
from cockpit_lite.diagnosis.units import DeadUnits
from tests.diagnosis.histories import Level, falling, first, level, readable


def unrelated(**changes: Level) -> dict[str, Level]:
    """A loss that comes down to 0.94 of the entropy of the labels in 220 steps, while the gradients do not agree."""
    usual: dict[str, Level] = {
        "loss": lambda step: 2.3 * (1 - 0.06 * step / 220),
        "loss_over_mean": 1.0,
        "label_entropy": 2.3,
        "update_ratio": 5e-3,
        "gradient_alignment": -0.006,
        "gradient_noise_scale": math.inf,
        "batch_size": 32.0,
    }
    return {**usual, **changes}


def test_labels_that_are_learnt_by_heart_are_unrelated_too() -> None:
    alert = first(LabelsUnrelated(), 230, **unrelated())
    assert alert is not None and alert.step == 200
    readable(alert)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_alignment": 0.02},
        {"gradient_noise_scale": 150.0},
        {"loss": lambda step: 2.3 * (1 - 0.2 * step / 220)},
    ],
    ids=["the samples agree", "noise, but a signal in it", "falls quickly"],
)
def test_what_falls_and_agrees_is_learnt(changes: dict[str, Level]) -> None:
    assert first(LabelsUnrelated(), 230, **unrelated(**changes)) is None


def validated(validation: Level, loss: Level) -> History:
    history = History()
    for step in range(250):
        row = {"loss": loss(step) if callable(loss) else loss}
        if step % 10 == 9:
            row["validation_loss"] = validation(step) if callable(validation) else validation
        history.add(step, row)
    return history


def test_a_validation_loss_that_stands_still_far_above_the_training_loss() -> None:
    alert = Overfitting().check(validated(falling(2.0, 0.46, 20), falling(2.0, 0.0, 25)))
    assert alert is not None and alert.severity == "note" and "stood at" in alert.cause
    readable(alert)


def test_a_usual_gap_is_no_fault() -> None:
    assert Overfitting().check(validated(falling(2.0, 0.3, 20), falling(2.0, 0.03, 25))) is None
    assert Overfitting().check(validated(falling(2.0, 0.0, 60), falling(2.0, 0.0, 20))) is None  # it still comes down


def shrinking(ratio: float) -> dict[str, Level]:
    return {
        "loss": falling(2.3, 1.2, 6),
        "weight_decay_ratio": level(ratio),
        "weight_decay": 0.1,
        "update_ratio": 0.01,
        "update_size": lambda step: 0.1 * 0.99**step,
    }


def test_decay_that_outweighs_the_gradient_from_the_start_is_found_although_the_loss_falls() -> None:
    alert = first(WeightDecayTooStrong(), 100, **shrinking(8.0))
    assert alert is not None and alert.evidence["suggested weight decay"] < 0.1 / 10
    readable(alert)
    assert first(WeightDecayTooStrong(), 100, **shrinking(2.0)) is None


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_a_schedule_is_looked_at_however_often_is_measured(every: int) -> None:
    rule, history = LearningRateSchedule(), History()
    alerts = []
    for step in range(160):
        history.add(step, {"learning_rate": 0.1 * 0.7**step})
        alerts += [rule.check(history)] if step % every == 0 else []
    assert any(alerts)


@pytest.mark.parametrize(("before", "advice"), [(0.9, "kaiming_normal_"), (0.0, "learning rate")])
def test_units_that_begin_dead_are_initialised_anew(before: float, advice: str) -> None:
    alert = first(DeadUnits(), 60, dead_units=lambda step: before if step == 0 else 0.9, batch_size=64.0)
    assert alert is not None and advice in alert.advice
    readable(alert)


def test_a_first_loss_out_of_all_proportion_is_harm_also_where_adam_divides_it_away() -> None:
    usual = {"grad_norm": 1e5, "update_size": 0.01, "update_ratio": 0.001, "loss": level(2e5)}
    assert first(ExplodingGradients(), 20, **usual, loss_over_uniform=1.1) is None
    alert = first(ExplodingGradients(), 20, **usual, loss_over_uniform=1e5)
    assert alert is not None and "what a guess would cost" in alert.cause
    readable(alert)
