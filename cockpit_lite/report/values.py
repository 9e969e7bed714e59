"""The last values of a run, for the table at the end of the report."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cockpit_lite.report.text import format_value

if TYPE_CHECKING:
    from cockpit_lite.run import Run


@dataclass(frozen=True)
class LastValue:
    """The last value of a reading of the whole run; ``how`` says how it was got where that is more than exact."""

    name: str
    step: int
    value: float
    how: str


@dataclass(frozen=True)
class LayerSpan:
    """The last values of a layerwise reading, from the smallest to the largest layer."""

    name: str
    layers: int
    smallest: float
    smallest_layer: str
    median: float
    largest: float
    largest_layer: str
    not_finite: int


def last_values(run: Run) -> list[LastValue]:
    """Return the last value of every scalar reading of the whole run, by name."""
    rows = []
    for name in run.names:
        last = None if "/" in name else _last(run, name)
        if last is not None:
            step, value = last
            rows.append(LastValue(name, step, value, _how_text(run.how(name).get(step, {}))))
    return rows


def layer_spans(run: Run) -> list[LayerSpan]:
    """Return one row for every layerwise reading, by name."""
    rows = []
    for name in sorted({name.partition("/")[0] for name in run.names if "/" in name}):
        layers = {layer: last[1] for layer in run.layers(name) if (last := _last(run, f"{name}/{layer}")) is not None}
        finite = {layer: value for layer, value in layers.items() if math.isfinite(value)}
        if layers:
            smallest = min(finite, key=finite.__getitem__, default="")
            largest = max(finite, key=finite.__getitem__, default="")
            rows.append(
                LayerSpan(
                    name=name,
                    layers=len(layers),
                    smallest=finite.get(smallest, math.nan),
                    smallest_layer=smallest,
                    median=statistics.median(finite.values()) if finite else math.nan,
                    largest=finite.get(largest, math.nan),
                    largest_layer=largest,
                    not_finite=len(layers) - len(finite),
                )
            )
    return rows


def _last(run: Run, name: str) -> tuple[int, float] | None:
    try:
        steps, values = run.series(name)
    except ValueError:  # arrays of different lengths: no table shows them
        return None
    return (int(steps[-1]), float(values[-1])) if values.ndim == 1 and len(values) else None


def _how_text(how: dict[str, Any]) -> str:
    words = [str(how["kind"])] if how.get("kind", "exact") != "exact" else []
    errors = [(key, value) for key, value in how.items() if key not in ("kind", "note") and value is not None]
    words += [f"{key.replace('_', ' ')} {format_value(value)}" for key, value in errors]
    words += [str(how["note"])] if how.get("note") else []
    return ", ".join(words)
