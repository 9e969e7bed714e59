"""Moving readings from the device to the host: together, asynchronously, never waiting inside the user's step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading

#: An array larger than this is no reading: it would be a line of a megabyte at every measured step.
MOST_ELEMENTS = 65_536

_USUAL = frozenset({torch.float32, torch.float64, torch.int64})


@dataclass
class Row:
    """Everything that was read on one step, or columns of plain readings of several. On the host ``values`` holds no tensors.

    Attributes:
        step: The step, or the last one of ``steps``.
        values: Reading name -> value; for several steps -> a list of values.
        how: Reading name -> how the value was got, where that is more than "exact".
        reasons: Reading name -> why there is no value.
        on_host: Reading name -> what makes the reading of its value once that is on the host.
        steps: Set for several steps on which nothing was measured.
    """

    step: int
    values: dict[str, Any]
    how: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    steps: list[int] | None = None
    on_host: dict[str, Callable[[Any], float | Reading]] = field(default_factory=dict)

    def put(self, readings: Mapping[str, Any]) -> None:
        """Add what an instrument returned, all of it or nothing.

        Raises:
            TypeError: if a reading is neither a number nor a tensor that a line of the log can hold.
        """
        values: dict[str, Any] = {}
        hows: dict[str, dict[str, Any]] = {}
        reasons: dict[str, str] = {}
        on_host: dict[str, Callable[[Any], float | Reading]] = {}
        for name, reading in readings.items():
            if type(name) is not str:
                raise TypeError(f"the names of readings are text, not {name!r}")
            if isinstance(reading, Tensor):  # nearly always
                values[name] = _loggable(name, reading)
            elif isinstance(reading, NotMeasured):
                reasons[name] = str(reading)
            elif isinstance(reading, Reading):
                values[name] = _loggable(name, reading.value)
                how = _how(name, reading)
                if how:
                    hows[name] = how
                if reading.on_host is not None:
                    on_host[name] = reading.on_host
            else:
                values[name] = _loggable(name, reading)
        self.values.update(values)
        if hows:
            self.how.update(hows)
        if reasons:
            self.reasons.update(reasons)
        if on_host:
            self.on_host.update(on_host)

    def settle(self) -> Row:
        """Finish the readings that are finished on the host, where the row is now; return the row."""
        for name, function in self.on_host.items():
            if name not in self.values:
                continue
            value = self.values.pop(name)
            try:
                found = function(value)
            except NotMeasured as reason:
                self.how.pop(name, None)
                self.reasons[name] = str(reason)
                continue
            except Exception as error:  # far from the instrument, which cannot be switched off from here
                self.how.pop(name, None)
                self.reasons[name] = f"it could not be finished on the host ({type(error).__name__}: {error})"
                continue
            if isinstance(found, Reading):
                how = {**self.how.get(name, {}), **_how(name, found)}
                if how:
                    self.how[name] = how
                found = found.value  # type: ignore[assignment]  # a number: it was made of numbers
            self.values[name] = _loggable(name, found)
        self.on_host = {}
        return self

    def _tensors(self) -> list[tuple[dict[str, Any], str, Tensor]]:
        return [
            (place, key, value)
            for place in (self.values, *self.how.values())
            for key, value in place.items()
            if isinstance(value, Tensor)
        ]


def _how(name: str, reading: Reading) -> dict[str, Any]:
    how: dict[str, Any] = {} if reading.kind == "exact" else {"kind": str(reading.kind)}
    if reading.standard_error is not None:
        how["standard_error"] = _loggable(name, reading.standard_error)
    if reading.residual is not None:
        how["residual"] = _loggable(name, reading.residual)
    if reading.note is not None:
        how["note"] = str(reading.note)
    return how


def _loggable(name: str, value: Any) -> Any:
    """Return ``value`` if the log can hold it: a number the reader would refuse takes the step's whole line with it."""
    if isinstance(value, Tensor):
        if value.is_cpu and value.dtype in _USUAL and value.layout is torch.strided and value.numel() <= MOST_ELEMENTS:
            return value  # nearly always on a CPU, and there are dozens of them at every measured step
        if value.layout is not torch.strided or value.dtype.is_complex or value.is_meta or value.is_quantized:
            raise TypeError(f"the reading {name!r} is a tensor without plain real numbers ({value.dtype}, {value.layout})")
        if value.numel() > MOST_ELEMENTS:
            raise TypeError(f"the reading {name!r} has {value.numel():,} elements; a reading is a number or a small array")
        return value
    if type(value) in (float, int):
        return value
    if not isinstance(value, Real):
        raise TypeError(f"the reading {name!r} must be a number or a tensor, not {type(value).__name__}")
    return float(value)


class HostTransfer:
    """A queue of rows: in with tensors, out with numbers, in the same order.

    On the CPU a row is ready at once. Tensors on an accelerator are copied in one piece without waiting, and the row
    is handed out by a later call, when the copy has arrived.
    """

    def __init__(self) -> None:
        self._in_flight: list[tuple[Row, list[tuple[dict[str, Any], str, Tensor]], Tensor, torch.Event | None]] = []

    def submit(self, row: Row) -> list[Row]:
        """Take a row; return all rows that are ready."""
        waiting = False
        for place, key, value in row._tensors():
            if value.is_cpu:
                place[key] = value.tolist()
            else:
                waiting = True
        if not waiting and not self._in_flight:
            return [row.settle()]
        self._copy(row)
        return self.ready()

    def ready(self, wait: bool = False) -> list[Row]:
        """Return the rows whose copy has arrived; with ``wait`` all of them."""
        rows: list[Row] = []
        while self._in_flight:
            row, places, host, event = self._in_flight[0]
            if event is not None and not event.query():
                if not wait:
                    break
                event.synchronize()
            numbers = host.tolist()
            start = 0
            for place, key, value in places:
                count = value.numel()
                flat = numbers[start : start + count]
                place[key] = (
                    flat[0] if value.dim() == 0 else torch.tensor(flat, dtype=torch.float64).reshape(value.shape).tolist()
                )
                start += count
            rows.append(row.settle())
            del self._in_flight[0]
        return rows

    def _copy(self, row: Row) -> None:
        places = row._tensors()
        if not places:
            self._in_flight.append((row, [], torch.empty(0), None))
            return
        device = places[0][2].device
        # Some accelerators have no float64.
        dtype = torch.float64 if device.type == "cuda" else torch.float32
        flat = torch.cat([value.detach().reshape(-1).to(device=device, dtype=dtype, non_blocking=True) for _, _, value in places])
        if device.type != "cuda":
            self._in_flight.append((row, places, flat.cpu(), None))
            return
        host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        host.copy_(flat, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._in_flight.append((row, places, host, event))
