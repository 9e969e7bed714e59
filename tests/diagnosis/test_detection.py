"""A fixed, small part of the detection benchmark: faults and healthy trainings on other tasks than those of the tests."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.detection import runs
from benchmarks.detection.faults import FAULTS
from benchmarks.detection.runs import Case, execute

#: Task, optimizer, fault, severity; each short, and each task once.
BROKEN = [
    ("mlp", "adam", "gradients-not-zeroed", 0),
    ("conv_batch_norm", "sgd", "graph-cut", 1),
    ("transformer", "adamw", "softmax-twice", 1),
    ("residual", "adam", "inputs-not-normalised", 1),
    ("language_model", "adamw", "padding-in-loss", 1),
    ("autoencoder", "sgd", "bounded-regression-output", 0),
    ("mlp", "momentum", "residual-growth", 1),
    ("mlp", "sgd", "optimizer-not-stepping", 0),
    ("autoencoder", "sgd", "clipping-before-unscaling", 0),
]
HEALTHY = [("residual", "momentum", "validation"), ("lstm", "adam", "clipping")]


def loud(record: dict[str, Any]) -> list[str]:
    return [name for name, _, severity, _ in record["findings"] if severity != "note"]


@pytest.mark.parametrize(("task", "optimizer", "fault", "severity"), BROKEN)
def test_the_fault_is_found_first(task: str, optimizer: str, fault: str, severity: int) -> None:
    number = next(place for place, known in enumerate(FAULTS) if known.name == fault)
    found = loud(execute(Case(task, optimizer, 7, number, severity)))
    assert found[:1] and found[0] in (fault, *FAULTS[number].also)


@pytest.mark.parametrize(("task", "optimizer", "control"), HEALTHY)
def test_healthy_trainings_are_silent(task: str, optimizer: str, control: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SHORT", 25)
    monkeypatch.setattr(runs, "LONG", 25)
    assert loud(execute(Case(task, optimizer, 7, control=control))) == []
