"""The readings that runs share, and how far each came to lie from that of the first run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cockpit_lite.plots.facts import NOTHING, recent
from cockpit_lite.plots.layout import OVERVIEW, PAGES, shown_by
from cockpit_lite.report.text import format_value
from cockpit_lite.run import Run


@dataclass(frozen=True)
class SharedReading:
    """A scalar reading that at least two of the runs have.

    Attributes:
        name: Of the reading.
        last: Median of the last ten finite values of each run; NaN where its values are not finite, None where it has none.
        on_overview: Whether the cockpit's first page shows it.
        constant: Whether it has the same value at all steps of all runs.
    """

    name: str
    last: tuple[float | None, ...]
    on_overview: bool
    constant: bool

    @property
    def is_outcome(self) -> bool:
        """Whether it is what a training is judged by: a loss or an accuracy, also one that the user logged."""
        return is_outcome(self.name)

    def change(self, run: int) -> str:
        """Return how the last value of a run compares with that of the first; empty where there is nothing to say.

        >>> reading = SharedReading("loss", (2.0, 1.5, 6.0, 0.1, None), True, False)
        >>> [reading.change(run) for run in range(5)]
        ['', '-25 %', '3 times', '20 times less', '']
        """
        first, other = self.last[0], self.last[run]
        if run == 0 or first is None or other is None or not (math.isfinite(first) and math.isfinite(other)) or first == 0:
            return ""
        if other == first:
            return "the same"
        ratio = other / first
        if ratio <= 0:  # a share of something of the other sign says nothing
            return ""
        if not 0.5 < ratio < 2:
            times = float(f"{max(ratio, 1 / ratio):.2g}")
            return f"{format_value(times)} times{' less' if ratio < 1 else ''}"
        percent = 100 * (ratio - 1)
        return "nearly the same" if abs(percent) < 0.05 else f"{percent:+.2g} %"


def shared_readings(runs: Sequence[Run]) -> list[SharedReading]:
    """Return the readings that at least two runs have, those of the cockpit's pages first and in the order of the pages."""
    placed = [*_in_order(OVERVIEW.gauges()), *_in_order(gauge for layout in PAGES.values() for gauge in layout.gauges())]
    order = {name: index for index, name in enumerate(dict.fromkeys(["loss", *placed]))}
    names = dict.fromkeys(name for run in runs for name in run.names if "/" not in name)
    # A gauge on the first page stands for the reading of its name; one that draws readings of other names, for all of them.
    first_page = {name for gauge in OVERVIEW.gauges() for name in ({gauge.__name__} & names.keys() or shown_by(gauge))}
    found = []
    for name in sorted(names, key=lambda name: (not is_outcome(name), order.get(name, len(order)), name)):
        series = [single_numbers(run, name)[1] for run in runs]
        if sum(len(values) > 0 for values in series) < 2:
            continue
        found.append(
            SharedReading(
                name,
                tuple(_last(run, name) if len(values) else None for run, values in zip(runs, series, strict=True)),
                name in first_page or is_outcome(name),
                constant=_is_constant(series),
            )
        )
    return found


def single_numbers(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all steps and values of a reading of single numbers; empty arrays if it was never measured or holds arrays."""
    try:
        steps, values = run.series(name)
    except (KeyError, ValueError):
        return NOTHING
    return (steps, values) if values.ndim == 1 else NOTHING


def _is_constant(series: Iterable[np.ndarray]) -> bool:
    there = [values for values in series if len(values)]
    low, high = min(values.min() for values in there), max(values.max() for values in there)
    return bool(low == high) and math.isfinite(low)  # NaN has no least value, and is no constant


def is_outcome(name: str) -> bool:
    """Return whether a reading of that name is a loss or an accuracy."""
    return name.endswith(("loss", "accuracy"))


def _last(run: Run, name: str) -> float:
    last = single_numbers(run, name)[1][-1]
    value = recent(run, name)
    return float(last) if value is None or not math.isfinite(last) else value


def _in_order(gauges: Iterable[object]) -> list[str]:
    return [getattr(gauge, "__name__", "") for gauge in gauges]
