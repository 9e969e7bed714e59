"""The benchmark of instruments: what it counts as first-order, and that its blocks leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.floor import account, operations
from benchmarks.instruments import TOGETHER, Timer, first_order, judged, kept, kept_for_good, selections, shares, target
from benchmarks.nets import nets
from cockpit_lite.instruments import INSTRUMENTS


def test_first_order_is_what_needs_no_pass_of_its_own() -> None:
    names = first_order()
    assert {"gsnr", "alpha", "activation_std", "update_size", "loss"} <= set(names)
    assert not {"max_eigenvalue", "hessian_trace", "trust_ratio"} & set(names)
    chosen = selections()
    assert set(chosen["light"]) < set(chosen["standard without curvature"])
    assert set(chosen[TOGETHER]) < set(chosen["and those of data and wiring"])


def test_a_share_leaves_out_one_instrument_and_none_that_is_always_there() -> None:
    left_out = shares(["loss", "gsnr", "alpha"])
    assert left_out == {"gsnr": ["loss", "alpha"], "alpha": ["loss", "gsnr"]}


def test_blocks_are_timed_and_leave_nothing_behind(tmp_path: Path) -> None:
    before = torch.autograd.backward
    timer = Timer(nets()[0], tmp_path, block_seconds=0.001)
    weights = [parameter.detach().clone() for parameter in timer.model.parameters()]
    assert timer.watched(["grad_norm"]) > 0
    assert all(map(torch.equal, weights, timer.model.parameters())), "the watched steps are taken on a copy"
    found, plain = timer.ratios({"light": ["grad_norm"]}, seconds=0.0, rounds=2)
    assert found["light"] > 0.5 and plain > 0
    assert torch.autograd.backward is before


def test_memory_counts_what_the_cockpit_keeps(tmp_path: Path) -> None:
    timer = Timer(nets()[0], tmp_path, block_seconds=0.001)
    size = sum(parameter.nbytes for parameter in timer.model.parameters())
    assert kept(["distance", "alpha"], timer.model) == 2 * size
    assert kept_for_good(["distance", "alpha"], timer.model) == size
    assert kept(["grad_norm"], timer.model) == 0
    plain = timer.memory(None)
    assert plain > 2 * size  # weights and gradients
    assert timer.memory(["distance"]) >= plain + size
    assert timer.memory(["alpha"]) >= plain + size, "the last update"


def test_an_instrument_that_was_switched_off_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, step: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(INSTRUMENTS["grad_norm"], "measure", fail)
    timer = Timer(nets()[0], tmp_path, block_seconds=0.001)
    with pytest.warns(Warning, match="grad_norm"), pytest.raises(AssertionError, match="switched off"):
        timer.watched(["grad_norm", "update_size"])


def test_the_short_net_has_a_target_of_its_own() -> None:
    assert target("MLP 784-256-128-10, batch 128") == 4.0
    assert target("3C3D, batch 64") == 2.5
    assert judged(2.5, 2.5) == "**2.50** (met)"
    assert judged(2.51, 2.5) == "**2.51** (missed: 2.5)"


def test_the_least_is_told_by_operation_and_sums_up(tmp_path: Path) -> None:
    timer = Timer(nets()[0], tmp_path, block_seconds=0.001)
    with timer.watching(["grad_norm", "gsnr"]) as step:
        assert operations(step) > operations(timer.plain_step) > 20
        rows = account(timer.model, 128, timer.plain_step, step, rounds=2)
    *parts, (name, total) = rows
    assert name == "together" and float(total) > 0.1
    assert float(total) == pytest.approx(sum(float(share) for _, share in parts), abs=0.01 * len(parts))


def test_operations_are_counted() -> None:
    values = torch.ones(3)
    assert operations(lambda: values.add(1).mul(2)) == 2
