"""The comparison with Cockpit: what can be held without it. Its figures are the benchmark's own."""

from __future__ import annotations

import math

import pytest

from benchmarks import cockpit_peer
from benchmarks.cockpit_peer import (
    COUNTERPARTS,
    Comparison,
    Cost,
    cost_row,
    counterparts,
    greatest_error,
    groups,
    value_rows,
    verdict,
)
from cockpit_lite.instruments import INSTRUMENTS


def test_our_side_of_every_group_is_made_of_instruments_that_exist() -> None:
    for name, theirs in groups().items():
        ours = counterparts(theirs)
        assert set(ours) <= set(INSTRUMENTS)
        assert len(ours) == len(set(ours)), name
    assert counterparts(["Parameters"]) == []
    assert counterparts(["GradNorm", "HessMaxEV"]) == ["grad_norm", "max_eigenvalue"]


def test_first_order_leaves_out_all_curvature() -> None:
    needs = {need for name in counterparts(groups()["all first-order together"]) for need in INSTRUMENTS[name].needs}
    assert "curvature" not in needs
    assert set(groups()["all first-order together"]) <= set(groups()["all together"]) <= set(COUNTERPARTS)


def test_the_greatest_error_counts_and_a_missing_value_is_no_agreement() -> None:
    assert greatest_error([1.0, 2.2, -3.0], [1.0, 2.0, -3.0]) == pytest.approx(0.1)
    assert math.isnan(greatest_error([1.0, math.nan], [1.0, 2.0]))
    comparison = Comparison("GradNorm", [1.0], [1.0], [math.nan], [1.0])
    assert value_rows([comparison])[0][2:4] == ["0e+00", "no value"]


def test_both_ratios_and_the_verdict() -> None:
    found = Cost(theirs=11.0, ours=2.0)
    assert found.times == pytest.approx(5.5) and found.extra_times == pytest.approx(10.0)
    assert cost_row("x", found) == ["x", "11.00", "2.00", "5.5", "10"]
    assert math.isinf(Cost(1.2, 0.99).extra_times)
    assert cost_row("x", Cost(1.2, 0.99))[-1] == "ours adds nothing"
    rows = {"all first-order together": found, "all together": Cost(8.0, 2.0)}
    first, second = verdict({"net": rows}).splitlines()
    assert "5.5 times cheaper" in first and first.endswith("met.")
    assert "missed" in second


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["cockpit_peer"])
    monkeypatch.setattr(cockpit_peer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'pip install -e "\.\[benchmark\]"'):
        cockpit_peer.main()
