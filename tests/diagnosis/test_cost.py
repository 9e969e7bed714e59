"""Rules are asked at every measured step: what they look at must not grow with the run."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.history import History
from tests.diagnosis.histories import history


class Counting(Sequence[float]):
    """A long series that counts how many of its values are read."""

    read = 0

    def __init__(self, values: Sequence[float]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        found = self.values[key]
        Counting.read += len(found) if isinstance(key, slice) else 1
        return found


def values_read(steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many values all rules read at a step, once they have seen the run so far."""
    made = history(steps, taylor_curvature_term=0.008, update_ratio=1e-6, max_eigenvalue=1.0, hessian_trace=2.0)
    for rule in RULES:
        rule.check(made)
    values = History.values
    monkeypatch.setattr(History, "values", lambda self, name: Counting(values(self, name)))
    Counting.read = 0
    for rule in RULES:
        rule.check(made)
    monkeypatch.undo()
    return Counting.read


def test_as_much_is_read_of_a_long_run_as_of_a_short_one(monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = values_read(500, monkeypatch), values_read(8000, monkeypatch)
    assert 100 < long < 2 * short and long < 2000
