"""The overhead benchmark measures what it says: on a net so small that only its shape matters."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import overhead
from benchmarks.budgets import row, spent
from benchmarks.nets import Net
from benchmarks.overhead import Case, Stopwatch, Timed, cases, judged, step_rows, ways


def small() -> Net:
    return Net("small, batch 8", lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), torch.randn(8, 6), torch.arange(8) % 3)


def test_every_way_trains_the_same(tmp_path: Path) -> None:
    """A block of each way leaves the weights where the plain one does: they can be compared."""
    for lbfgs in (False, True):
        case = Case(small(), lbfgs)
        torch.manual_seed(0)
        model = case.net.factory()
        plain = None
        for number, (name, way) in enumerate({"plain": None, **ways(case, peers=False)}.items()):
            other = case.net.factory()
            other.load_state_dict(model.state_dict())
            if way is None:
                step = case.step(other, case.optimizer(other))
                step(), step()
                plain = [parameter.clone() for parameter in other.parameters()]
                continue
            with way(case, other, tmp_path / f"{lbfgs}{number}") as step:
                step(), step()
            assert all(map(torch.equal, other.parameters(), plain or [])), name


def test_ratios_memory_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "PRESETS", ("light",))
    case = Case(small())
    stopwatch = Stopwatch(case, tmp_path, block_seconds=0.002)
    found = stopwatch.times({name: ways(case)[name] for name in ("untracked", "light", "detect_anomaly")}, seconds=0.0, rounds=2)
    assert all(len(timed.ratios) == 2 and timed.median > 0 for timed in found.values())
    assert 0 < found["light"].bytes_a_step < 2000
    assert 10 < found["light"].numbers_a_step < found["light"].bytes_a_step / 2
    assert found["light"].memory > 1
    rows = step_rows(case, found, 0.001)
    assert len(rows) == 1 + len(found) and "met" in rows[2][-1]


def test_a_budget_is_measured(tmp_path: Path) -> None:
    """Of a short training the share is told, and not judged."""
    found = spent(Case(small()), "full", 0.5, tmp_path / "run", steps=40)
    assert found.steps == 40 and found.account > 0 and 0 < found.measured <= 40 and found.clock > -1
    assert "met" not in row(found)[3] and "missed" not in row(found)[3]
    long = dataclasses.replace(found, steps=2000, account=0.0549, share=0.05)
    assert "met" in row(long)[3]
    assert "missed" in row(dataclasses.replace(long, account=0.056))[3]


def test_a_miss_is_called_one() -> None:
    assert judged(1.0, 1.5) == "**1.00** (met)"
    assert judged(1.6, 1.5) == "**1.60** (missed: 1.50)"
    assert judged(1.6, None) == "1.60"
    assert Timed([1.0, 2.0, 9.0]).median == 2.0
    assert {case.lbfgs for case in cases()} == {False, True}
