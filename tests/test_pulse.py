"""The steps on which nothing is measured: their loss, learning rate and duration, in blocks."""

from __future__ import annotations

import math

import pytest
import torch

from cockpit_lite.pulse import Pulse


def test_steps_become_columns() -> None:
    pulse = Pulse()
    assert pulse.take() is None
    assert not pulse.add(3, torch.tensor(1.5), 0.1, 0.01, 0.0)
    assert not pulse.add(4, torch.tensor(1.25), torch.tensor(0.2), 0.02, 0.0)
    row = pulse.take()
    assert row is not None and row.steps == [3, 4] and row.step == 4
    assert row.values == {"loss": [1.5, 1.25], "learning_rate": [0.1, pytest.approx(0.2)], "step_time": [0.01, 0.02]}
    assert pulse.take() is None


def test_a_row_that_was_taken_is_not_changed_by_later_steps() -> None:
    pulse = Pulse()
    pulse.add(0, torch.tensor(1.0), 0.1, 0.01, 0.0)
    row = pulse.take()
    pulse.add(1, torch.tensor(2.0), 0.1, 0.01, 0.0)
    assert row is not None and row.steps == [0] and row.values["loss"] == [1.0]


def test_it_is_full_after_so_many_steps() -> None:
    pulse = Pulse()
    assert [pulse.add(step, torch.tensor(1.0), 0.1, 0.0, 0.0) for step in range(Pulse.size)] == [False] * (Pulse.size - 1) + [
        True
    ]


def test_it_is_full_after_a_second() -> None:
    pulse = Pulse()
    assert not pulse.add(0, torch.tensor(1.0), 0.1, 0.0, 50.0)
    assert not pulse.add(1, torch.tensor(1.0), 0.1, 0.0, 50.9)
    assert pulse.add(2, torch.tensor(1.0), 0.1, 0.0, 51.0)
    pulse.take()
    assert not pulse.add(3, torch.tensor(1.0), 0.1, 0.0, 51.1)  # the second begins anew


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_cannot_wait(value: float) -> None:
    assert Pulse().add(0, torch.tensor(value), 0.1, 0.0, 0.0)


def test_no_number_is_invented_for_a_loss_that_was_not_seen() -> None:
    pulse = Pulse()
    pulse.add(0, torch.tensor(1.0), 0.1, 0.01, 0.0)
    assert not pulse.add(1, None, 0.1, 0.01, 0.0)
    row = pulse.take()
    assert row is not None and set(row.values) == {"learning_rate", "step_time"}
    pulse.add(2, torch.tensor(1.0), None, 0.01, 0.0)
    row = pulse.take()
    assert row is not None and set(row.values) == {"loss", "step_time"}
    pulse.add(3, torch.tensor(1.0), 0.1, 0.01, 0.0)
    row = pulse.take()
    assert row is not None and set(row.values) == {"loss", "learning_rate", "step_time"}


def test_the_loss_is_read_before_the_user_changes_it() -> None:
    pulse, loss = Pulse(), torch.tensor(1.0)
    pulse.add(0, loss, 0.1, 0.0, 0.0)
    loss.zero_()
    row = pulse.take()
    assert row is not None and row.values["loss"] == [1.0]


@pytest.mark.gpu
def test_on_a_gpu_nobody_waits_for_the_loss() -> None:
    pulse = Pulse()
    for step in range(3):
        assert not pulse.add(step, torch.tensor(float("nan") if step == 2 else 1.0 * step, device="cuda"), 0.1, 0.0, 0.0)
    row = pulse.take()
    assert row is not None and row.values["loss"].is_cuda and row.values["loss"].shape == (3,)
