"""The benchmark of the views measures what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.views import TWELVE, GrowingRun, Refreshes, Watched, refreshes, verdict
from cockpit_lite import load_run
from cockpit_lite.plots.layout import shown_by


def test_a_run_of_any_length_has_what_twelve_gauges_show(tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "run", 300) as growing:
        growing.grow(7)
    run = load_run(tmp_path / "run")
    assert run.last_step == 306
    assert all(len(run.series(name)[0]) == 307 for name in run.names)
    assert len(TWELVE.gauges()) == 12
    assert all(shown_by(gauge) & set(run.names) for gauge in TWELVE.gauges())


def test_a_run_under_a_budget_has_little_at_most_steps(tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "run", 300, tracked=100):
        pass
    run = load_run(tmp_path / "run")
    assert len(run.series("loss")[0]) == 300
    assert run.series("alpha")[0].tolist() == [0, 100, 200]


def test_refreshes_are_of_a_run_that_grows(tmp_path: Path) -> None:
    with GrowingRun(tmp_path / "run", 50) as growing:
        found = refreshes(tmp_path / "run", growing, count=2)
    assert growing.steps == 52 == found.steps
    assert len(found.times) == 2 and min(found.times) > 0
    assert found.first > found.median > 0


def test_medians_are_of_neighbours() -> None:
    watched = Watched(alone=[1.0, 2.0, 1.0], watched=[3.0, 1.5], viewer=0.0)
    assert watched.ratio == 1.5
    assert watched.control == pytest.approx(1.25)
    assert Refreshes(1, 9.0, [1.0, 3.0, 2.0]).median == 2.0


def test_a_missed_target_is_called_one() -> None:
    assert verdict(0.0312, 0.05, 1e-3, "ms") == "**31.2 ms** (met)"
    assert verdict(2.4, 2.0, 1, "s") == "**2.4 s** (missed: 2 s)"
