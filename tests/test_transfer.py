"""From the device to the host: every row comes out once, in order, with numbers in place of tensors."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.transfer import MOST_ELEMENTS, HostTransfer, Row


class OnDevice(Tensor):
    """A tensor that says it is on an accelerator, so that its path is taken on a machine without one."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("xpu")

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "device"}
        if function is Tensor.device.__get__:  # type: ignore[attr-defined]
            return torch.device("xpu")
        return super().__torch_function__(function, types, args, kwargs)


def on_device(*values: float) -> Tensor:
    return torch.tensor(values).as_subclass(OnDevice)


def numbers_only(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(numbers_only, value))
    return isinstance(value, (int, float))


def test_on_the_cpu_a_row_is_ready_at_once() -> None:
    row = Row(3, {"scalar": torch.tensor(1.5), "vector": torch.tensor([1.0, 2.0]), "plain": 4.0})
    row.how["scalar"] = {"kind": "estimated", "standard_error": torch.tensor(0.25)}
    transfer = HostTransfer()
    assert transfer.submit(row) == [row]
    assert row.values == {"scalar": 1.5, "vector": [1.0, 2.0], "plain": 4.0}
    assert row.how == {"scalar": {"kind": "estimated", "standard_error": 0.25}}
    assert transfer.ready() == [] == transfer.ready(wait=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool])
def test_every_precision(dtype: torch.dtype) -> None:
    row = Row(0, {"x": torch.tensor([1, 0], dtype=dtype)})
    HostTransfer().submit(row)
    assert row.values["x"] == [1, 0]


def test_a_tensor_that_requires_a_gradient() -> None:
    row = Row(0, {"x": torch.tensor(2.0, requires_grad=True) * 3})
    HostTransfer().submit(row)
    assert row.values == {"x": 6.0}


def test_from_a_device_all_tensors_of_a_row_come_in_one_piece() -> None:
    matrix = torch.arange(6.0).reshape(2, 3).as_subclass(OnDevice)
    row = Row(0, {"matrix": matrix, "one": on_device(7.0)[0], "plain": 1.0, "empty": on_device()})
    row.how["one"] = {"kind": "estimated", "standard_error": on_device(0.5)[0], "note": "by hand"}
    transfer = HostTransfer()
    rows = transfer.submit(row) + transfer.ready(wait=True)
    assert rows == [row]
    assert row.values == {"matrix": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "one": 7.0, "plain": 1.0, "empty": []}
    assert row.how == {"one": {"kind": "estimated", "standard_error": 0.5, "note": "by hand"}}


class Event:
    """A copy that has arrived when the test says so."""

    def __init__(self) -> None:
        self.arrived = False
        self.waited = False

    def query(self) -> bool:
        return self.arrived

    def synchronize(self) -> None:
        self.arrived = self.waited = True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> tuple[HostTransfer, list[Event]]:
    """A transfer whose copies take as long as the test wants, and their events."""
    transfer, events = HostTransfer(), []
    copy = transfer._copy

    def copy_slowly(row: Row) -> None:
        copy(row)
        events.append(Event())
        row, places, host, _ = transfer._in_flight.pop()
        transfer._in_flight.append((row, places, host, events[-1]))  # type: ignore[arg-type]

    monkeypatch.setattr(transfer, "_copy", copy_slowly)
    return transfer, events


def test_rows_keep_their_order_whichever_copy_arrives_first(slow: tuple[HostTransfer, list[Event]]) -> None:
    transfer, events = slow
    rows = [Row(step, {"x": on_device(float(step))[0]}) for step in range(3)]
    assert [transfer.submit(row) for row in rows] == [[], [], []]
    events[1].arrived = True
    assert transfer.ready() == []  # the second waits for the first
    events[0].arrived = True
    assert transfer.ready() == rows[:2]
    assert transfer.ready() == []
    assert transfer.ready(wait=True) == rows[2:] and events[2].waited
    assert [row.values["x"] for row in rows] == [0.0, 1.0, 2.0]


def test_a_row_of_plain_numbers_does_not_overtake(slow: tuple[HostTransfer, list[Event]]) -> None:
    transfer, events = slow
    first, second = Row(0, {"x": on_device(1.0)[0]}), Row(1, {"x": 2.0, "y": torch.tensor(3.0)})
    assert transfer.submit(first) == [] == transfer.submit(second)
    events[0].arrived = events[1].arrived = True
    assert transfer.ready() == [first, second]
    assert numbers_only([*first.values.values(), *second.values.values()])


def test_nobody_is_made_to_wait_inside_a_step(slow: tuple[HostTransfer, list[Event]]) -> None:
    transfer, events = slow
    for step in range(5):
        transfer.submit(Row(step, {"x": on_device(1.0)[0]}))
        transfer.ready()
    assert not any(event.waited for event in events)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    transfer = HostTransfer()
    rows = []
    for step in range(50):
        values = {
            "loss": torch.tensor(0.1, device="cuda") * step,
            "vector": torch.full((3,), float(step), device="cuda"),
            "host": 1.0,
        }
        rows += transfer.submit(Row(step, values))
    rows += transfer.ready(wait=True)
    assert [row.step for row in rows] == list(range(50))
    for row in rows:
        assert row.values["vector"] == [row.step] * 3
        assert row.values["loss"] == pytest.approx(0.1 * row.step, rel=1e-6)


# ------------------------------------------------------------------------------------------------- what an instrument returns


def test_how_a_value_was_got_is_kept_where_it_is_more_than_exact() -> None:
    row = Row(0, {})
    row.put(
        {"a": 1.0, "b": Reading(2.0), "c": Reading(3.0, "estimated", standard_error=0.1, residual=torch.tensor(0.2), note="n")}
    )
    assert row.values == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert row.how == {"c": {"kind": "estimated", "standard_error": 0.1, "residual": torch.tensor(0.2), "note": "n"}}


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), Fraction(1, 2), np.int32(2), True])
def test_other_numbers_become_floats(value: Any) -> None:
    row = Row(0, {})
    row.put({"x": value})
    assert type(row.values["x"]) is float and row.values["x"] == value


@pytest.mark.parametrize("value", [math.nan, math.inf, torch.tensor(math.nan)])
def test_what_is_not_finite_is_a_reading(value: Any) -> None:
    row = Row(0, {})
    row.put({"x": value})
    assert set(row.values) == {"x"}


@pytest.mark.parametrize(
    "value",
    [
        "0.5",
        None,
        [1.0],
        {"y": 1.0},
        np.zeros(3),
        object(),
        1j,
        torch.tensor(1j),
        torch.eye(3).to_sparse(),
        torch.empty(3, device="meta"),
        torch.zeros(MOST_ELEMENTS + 1),
        Reading(None),  # type: ignore[arg-type]
        Reading(1.0, "estimated", standard_error="large"),  # type: ignore[arg-type]
    ],
    ids=lambda value: f"{type(value).__name__} {str(value)[:20]}",
)
def test_what_no_line_can_hold_is_refused_and_nothing_of_it_kept(value: Any) -> None:
    row = Row(0, {"other": 1.0})
    with pytest.raises(TypeError, match="the reading 'x'"):
        row.put({"fine": Reading(1.0, "estimated"), "x": value})
    assert row.values == {"other": 1.0} and row.how == {}


def refused(value: float) -> float:
    raise NotMeasured(f"{value:g} is not positive")


@pytest.mark.parametrize("make", [torch.tensor, on_device], ids=["cpu", "device"])
def test_readings_that_are_finished_on_the_host(make: Any) -> None:
    """Where the numbers are known a formula may depend on them, have an error, or say that there is no value."""
    row = Row(0, {})
    row.put(
        {
            "sum": Reading(
                make([1.0, 2.0] if make is torch.tensor else 1.0), kind="estimated", on_host=lambda value: value[0] + 1
            ),
            "error": Reading(make(2.0), note="so", on_host=lambda value: Reading(-1.0, standard_error=0.5)),
            "gone": Reading(make(-2.0), note="so", on_host=lambda value: refused(-2.0)),
            "broken": Reading(make(0.0), on_host=lambda value: 1 // 0),
            "plain": make(3.0),
        }
    )
    transfer = HostTransfer()
    (ready,) = [*transfer.submit(row), *transfer.ready(wait=True)]
    assert ready.values["sum"] == 2.0 and ready.values["error"] == -1.0
    assert sorted(ready.values) == ["error", "plain", "sum"]
    assert ready.how == {"sum": {"kind": "estimated"}, "error": {"note": "so", "standard_error": 0.5}}
    assert ready.reasons["gone"] == "-2 is not positive"
    assert "ZeroDivisionError" in ready.reasons["broken"]


def test_one_reading_of_several_is_missing() -> None:
    row = Row(0, {})
    row.put({"loss": torch.tensor(1.0), "norm": NotMeasured("the batch holds one sample")})
    assert row.values == {"loss": torch.tensor(1.0)}
    assert row.reasons == {"norm": "the batch holds one sample"}
