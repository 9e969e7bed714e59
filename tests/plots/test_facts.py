from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit_lite.plots import Page
from cockpit_lite.plots.facts import measuring_share
from cockpit_lite.run import Run, load_run
from cockpit_lite.run_log import RunWriter


def run_with(folder: Path, overhead: list[float], **final: Any) -> Run:
    writer = RunWriter(folder, {"model": "Net"})
    for step, share in enumerate(overhead):
        writer.step(step, {"loss": 1.0, "overhead": share})
    writer.close(**final)
    return load_run(folder)


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        ({}, 0.3),
        ({"status": "completed", "cost": {"share": 0.04}}, 0.04),
        ({"status": "failed", "cost": {"share": 0.0}}, 0.0),
        ({"status": "running", "cost": {"share": 0.04}}, 0.3),
        ({"status": "completed"}, 0.3),
        ({"status": "completed", "cost": {"share": None}}, 0.3),
        ({"status": "completed", "cost": "much"}, 0.3),
    ],
)
def test_what_measuring_cost_is_the_final_account_once_there_is_one(
    final: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    assert measuring_share(run_with(tmp_path / "run", [0.9, 0.3, 0.3, 0.1], **final)) == expected


def test_nothing_is_known_before_the_first_measurement(tmp_path: Path) -> None:
    assert measuring_share(run_with(tmp_path / "run", [])) is None


def test_the_page_says_what_it_cost_in_the_end(tmp_path: Path) -> None:
    page = Page()
    page.update(run_with(tmp_path / "run", [0.9, 0.5], status="completed", cost={"share": 0.04}))
    assert any("measuring costs 4 %" in words.get_text() for words in page.figure.texts)
