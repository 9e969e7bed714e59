"""Wrong labels and leaks: histories that show them, and healthy ones that come close."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.samples import LabelsNoisy, ValidationLeak
from tests.diagnosis.histories import Level, falling, first, readable


def noisy(**changes: Level) -> dict[str, Level]:
    usual: dict[str, Level] = {"label_noise": falling(1.0, 0.15, 20), "batch_accuracy": 0.82, "loss_rows": 32.0}
    return {**usual, **changes}


def test_a_level_of_wrong_labels() -> None:
    alert = first(LabelsNoisy(), 200, **noisy())
    assert alert is not None and alert.severity == "note" and alert.step >= 100
    readable(alert)
    assert alert.evidence["share of wrong labels"] == pytest.approx(0.15, abs=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"label_noise": 0.01},
        {"label_noise": falling(1.0, 0.0, 40)},  # still being learnt
        {"batch_accuracy": 0.4},  # nobody knows enough yet
        {"label_noise": 0.05, "batch_accuracy": 0.6},  # a hard task: most errors are near guesses
        {"loss_rows": 2.0, "label_noise": 0.05, "batch_accuracy": 0.93},  # too few samples to be sure
    ],
    ids=["few", "still being learnt", "nobody knows enough yet", "a hard task", "too few samples"],
)
def test_hard_is_not_wrong(changes: dict[str, Level]) -> None:
    assert first(LabelsNoisy(), 200, **noisy(**changes)) is None


def every_tenth(value: float) -> Callable[[int], float]:
    return lambda step: value if step % 10 == 9 else float("nan")


def leak(overlap: float, samples: float = 200.0, **more: Level) -> Alert | None:
    counts = lambda step: samples if step % 10 == 9 else 0.0  # noqa: E731
    return first(ValidationLeak(), 60, validation_overlap=every_tenth(overlap), validation_samples=counts, **more)


def test_a_part_of_the_validation_set_was_trained_on() -> None:
    alert = leak(0.2)
    assert alert is not None and alert.step == 9 and alert.evidence["in both"] == 40.0
    readable(alert)


def test_all_of_it_only_where_it_is_called_validation() -> None:
    assert leak(1.0) is None  # a second look at the training set
    alert = leak(1.0, validation_loss=0.3)
    assert alert is not None
    readable(alert)


def test_no_leak() -> None:
    assert leak(0.0) is None
    assert leak(0.005) is None  # duplicates are in most data
    assert leak(0.02, samples=50.0) is None  # a single one
    late = lambda step: 0.3 if step > 20 else 0.0  # noqa: E731
    assert first(ValidationLeak(), 60, validation_overlap=late, validation_samples=32.0) is None  # a teacher on every batch
