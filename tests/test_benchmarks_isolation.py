"""Some faults of every part of a cockpit; benchmarks.isolation injects them all."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.isolation import Fault, Isolation, faults, raising
from cockpit_lite import instruments
from cockpit_lite.recorder import Recorder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="full devices and limits are those of Linux")

ALL = faults()
#: All of those around the cockpit, and every ninth of those inside.
SLICE = [
    fault
    for number, fault in enumerate(ALL)
    if fault.group in ("log", "user and outside", "viewer")
    or (fault.group in ("instruments", "probes and steps", "rules") and number % 9 == 0)
]


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    return Isolation()


@pytest.mark.parametrize("fault", SLICE, ids=lambda fault: f"{fault.group}: {fault.name}")
def test_a_fault_of_ours_is_survived(fault: Fault, isolation: Isolation, tmp_path: Path) -> None:
    assert isolation.problems(fault, tmp_path / "run") == []


@pytest.mark.parametrize("name", ["update_size hangs", "max_eigenvalue hangs", "CL101", "a sink's step hangs"])
def test_what_hangs_is_survived(name: str, isolation: Isolation, tmp_path: Path) -> None:
    fault = next(fault for fault in ALL if fault.group.startswith("hanging") and fault.name.startswith(name))
    assert isolation.problems(fault, tmp_path / "run") == []


def test_there_are_enough() -> None:
    assert len(ALL) >= 60
    inside = {"instruments", "probes and steps", "rules", "hanging instruments", "hanging rules", "hanging sinks"}
    assert inside | {"log", "user and outside", "viewer", "report"} == {f.group for f in ALL}


def test_what_would_not_be_survived_is_seen(isolation: Isolation, tmp_path: Path) -> None:
    options = {"instruments": "light"}
    through = Fault("log", "log raises", raising(Recorder, "log", RuntimeError("through")), "", options)
    assert isolation.problems(through, tmp_path / "one")
    wrong = raising(instruments.GradientNorm, "measure", RuntimeError("injected"))
    assert "does not say" in isolation.problems(Fault("instruments", "x", wrong, "'another'", options), tmp_path / "two")[0]
