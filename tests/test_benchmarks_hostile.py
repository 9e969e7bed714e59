"""Some hostile run folders; benchmarks.hostile tries ten thousand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.hostile import judge, original

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices are those of Linux")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original(tmp_path_factory.mktemp("hostile") / "original")


@pytest.mark.parametrize("first", range(0, 200, 25))
def test_a_clear_error_or_a_partial_reading(first: int, source: Path, tmp_path: Path) -> None:
    verdicts = [judge(seed, source, tmp_path / str(seed)) for seed in range(first, first + 25)]
    assert [verdict for verdict in verdicts if verdict.problem or verdict.kind == "failed"] == []
    assert {verdict.kind for verdict in verdicts} == {"read", "refused"}


def test_pages_and_files_are_safe_too(source: Path, tmp_path: Path) -> None:
    verdict = judge(1, source, tmp_path / "1", pictures=1)
    assert verdict.problem == ""
