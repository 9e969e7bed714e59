"""The benchmarks' page and verdicts: what a benchmark writes stays beside what the others wrote, and a miss is called one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from benchmarks.demos import is_right
from benchmarks.identity import differences, images, training
from benchmarks.nets import nets
from benchmarks.page import publish, table
from benchmarks.untracked import Timing, measure, reason
from cockpit_lite import Alert
from tests.identity import outcome
from tests.optimizers import OPTIMIZERS


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks"])


def test_a_section_takes_the_place_of_its_earlier_version(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    publish("one", "One", "first figure", page=page)
    publish("two", "Two", r"a \1 backslash", page=page)
    page.write_text(page.read_text() + "\nA remark of a person.\n")
    publish("one", "One", "second figure", page=page)
    text = page.read_text()
    assert text.startswith("# Benchmarks")
    assert "first figure" not in text
    assert text.index("second figure") < text.index(r"a \1 backslash") < text.index("A remark of a person.")
    assert text.count("## ") == 2
    assert "`python -m benchmarks.one`" in text


def test_print_only_leaves_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish("one", "One", "a figure", print_only=True, page=tmp_path / "benchmarks.md")
    assert "a figure" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"


def test_the_first_finding_decides_about_a_demo() -> None:
    def alert(name: str, severity: str) -> Alert:
        return Alert("CL000", name, severity, 3, "", "")  # type: ignore[arg-type]

    right, other, note = alert("right", "error"), alert("other", "warning"), alert("harmless", "note")
    assert is_right("right", (right, other))
    assert not is_right("right", (other, right))
    assert not is_right("right", ())
    assert is_right(None, ())
    assert is_right(None, (note,))
    assert not is_right(None, (note, other))


def test_the_smallest_possible_change_of_a_weight_is_seen() -> None:
    data = images()
    plain = outcome(training(OPTIMIZERS[0], *data), None, seed=0)
    again = outcome(training(OPTIMIZERS[0], *data), None, seed=0)
    nudged = outcome(training(OPTIMIZERS[0], *data, nudge=True), None, seed=0)
    assert differences(plain, again) == ([], [])
    weights, rest = differences(plain, nudged)
    assert len(weights) == 1 and rest == []


def test_every_net_that_is_timed_can_be_trained() -> None:
    for net in nets():
        output = net.factory()(net.inputs)
        assert output.flatten(0, -2).shape[0] == net.targets.numel(), net.name


def test_blocks_are_paired_and_leave_nothing_behind(tmp_path: Path) -> None:
    before = torch.autograd.backward
    timing = measure(nets()[0], seconds=0.0, folder=tmp_path, block_seconds=0.05)
    assert len(timing.plain) == len(timing.watched) + 1 == 5
    assert min(timing.plain + timing.watched) > 0
    assert torch.autograd.backward is before


def test_a_miss_is_explained_and_a_hit_is_not() -> None:
    hit = Timing("long", 1, [1.0, 1.0, 1.0], [1.01, 1.01])
    miss = Timing("short", 1, [0.001, 0.001, 0.001], [0.00105, 0.00105])
    assert reason([hit]) == ""
    assert miss.ratio == pytest.approx(1.05)
    assert "50 microseconds" in reason([hit, miss])
    assert "5.0 ms" in reason([hit, miss])
    noise = Timing("noisy", 1, [0.001, 0.002, 0.001, 0.001], [0.0009, 0.001, 0.0011])
    long_miss = Timing("long", 1, [1.0, 1.0, 1.0], [1.1, 1.1])
    assert "spread" in reason([noise, long_miss])


def test_a_machine_that_gets_slower_evenly_adds_nothing() -> None:
    even = Timing("slower", 1, [1.0, 1.2, 1.4, 1.6], [1.1, 1.3, 1.5])
    assert even.ratio == even.control == pytest.approx(1.0)
    low, high = Timing("uneven", 1, [1.0] * 41, [0.9] * 10 + [1.0] * 20 + [1.1] * 10).interval
    assert low == high == 1.0
    low, high = Timing("split", 1, [1.0] * 41, [0.9] * 20 + [1.1] * 20).interval
    assert (low, high) == pytest.approx((0.9, 1.1))
