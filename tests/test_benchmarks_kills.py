"""A few kills at random moments; benchmarks.kills does two hundred."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from benchmarks.kills import expected_losses, kill_once

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")


@pytest.fixture(scope="module")
def expected() -> list[float]:
    return expected_losses()


@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_lost(seed: int, expected: list[float], tmp_path: Path) -> None:
    result = kill_once(tmp_path / "run", random.Random(seed), expected)
    assert result.lost == ""
    assert result.flushed > 0


def test_a_loss_would_be_seen(expected: list[float], tmp_path: Path) -> None:
    wrong = [value + 0.1 for value in expected]
    assert "not those of the training" in kill_once(tmp_path / "run", random.Random(0), wrong).lost
