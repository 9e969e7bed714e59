"""One reading of several runs on one gauge: a line for each run, and the band in which its values scatter."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from cockpit_lite.compare.readings import SharedReading, single_numbers
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.report.gauges import blank
from cockpit_lite.report.svg import inline_svg
from cockpit_lite.run import Run

#: A longer series is drawn as the median of so many stretches of steps, in a band from the tenth to the ninetieth percentile.
_STRETCHES = 60
#: From so many values a stretch on there is a scatter to be shown.
_FEWEST_VALUES = 5


def overlay(runs: Sequence[Run], labels: Sequence[str], reading: SharedReading, key: str) -> Markup:
    """Draw a reading of several runs, told apart by colour and by solid or dashed; ``key`` tells the picture apart."""
    figure, ax = blank()
    name = reading.name.replace("_", " ")
    with panel(_longest(runs), ax, name[:1].upper() + name[1:], scale="auto") as board:
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            steps, values = single_numbers(run, reading.name)
            if not len(steps):
                continue
            middle_steps, low, middle, high = stretches(steps, values)
            if len(middle_steps) < len(steps):
                board.band(label, middle_steps, low, high, colour=index)
                broken = ~np.isfinite(values)
                board.curve(f"{label} not finite", steps[broken], values[broken], colour=index)  # draws nothing, is marked
            # Solid and dashed take turns, so that neighbours are told apart without colour.
            board.curve(label, middle_steps, middle, label=label, colour=index, dashed=bool(index % 2))
        last = [f"{label} {short(value)}" for label, value in zip(labels, reading.last, strict=True) if value is not None]
        board.read(Verdict("at the end: " + ", ".join(last)))
    return inline_svg(figure, key)


def stretches(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, tenth percentile, median and ninetieth percentile of stretches of a series.

    A short series is returned as it is. Of a stretch only finite values count; one without any is NaN.
    """
    if len(steps) < _STRETCHES * _FEWEST_VALUES:
        return steps, values, values, values
    edges = np.linspace(0, len(steps), _STRETCHES + 1).astype(int)
    rows = []
    for start, end in itertools.pairwise(edges):
        part = values[start:end]
        finite = part[np.isfinite(part)]
        quantiles = np.quantile(finite, [0.1, 0.5, 0.9]) if len(finite) else [math.nan] * 3
        rows.append((float(np.median(steps[start:end])), *quantiles))
    middle, low, median, high = np.array(rows).T
    middle[0], middle[-1] = steps[0], steps[-1]
    return middle, low, median, high


def _longest(runs: Sequence[Run]) -> Run:
    """Return the longest run without its alerts, which would be marked as if they were of all: a panel asks how long it is."""
    longest = copy.copy(max(runs, key=lambda run: -1 if run.last_step is None else run.last_step))
    longest.alerts = []
    return longest
