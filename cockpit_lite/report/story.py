"""The story of a run: phases in which its loss falls, stays or rises, with the learning rate and what was found in each.

The loss, its logarithm where it is positive, is cut into at most five straight pieces: those that minimise

    RSS / sigma² + 3 K log m,   K pieces of m medians, sigma their scatter

(the Bayesian information criterion: a piece has a slope, a height and an end). A piece is level where its change is within
three standard errors of none, and fast where it falls at more than twice the rate of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cockpit_lite.alert import Alert
from cockpit_lite.report.text import format_value, listed

if TYPE_CHECKING:
    from cockpit_lite.run import Run

Course = Literal["falls fast", "falls", "level", "rises", "not finite", "too short"]

#: Fewer finite values than this have no course.
_FEWEST_VALUES = 12
_MOST_MEDIANS = 90
_FEWEST_MEDIANS = 3
_MOST_PIECES = 5
#: Scatter and changes below these shares of the whole range are not told apart: a smooth curve is not a polygon.
_LEAST_SCATTER = 0.02
_LEAST_CHANGE = 0.05
#: From this factor between one value and the next on the learning rate jumps.
_JUMP = 1.5
_MOST_JUMPS = 3


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with one course of the loss.

    Attributes:
        first: Its first step.
        last: Its last step.
        course: Of the loss.
        start: Loss at its beginning; NaN where there is none.
        end: Loss at its end.
        text: What happened, in words.
        findings: Names of what was found in it.
    """

    first: int
    last: int
    course: Course
    start: float
    end: float
    text: str
    findings: tuple[str, ...] = ()


def phases(run: Run, findings: Sequence[Alert] = ()) -> tuple[Phase, ...]:
    """Return the phases of a run in order; none for a run without a loss."""
    try:
        steps, values = run.series("loss")
    except (KeyError, ValueError):
        return ()
    if values.ndim != 1 or not len(values):
        return ()
    found = _courses(steps, values)
    told: list[Phase] = []
    rate = ""
    for index, (first, last, course, start, end) in enumerate(found):
        until = found[index + 1][0] - 1 if index + 1 < len(found) else max(last, run.last_step or 0)
        inside = [
            alert
            for alert in findings
            if (alert.step >= first or index == 0) and (alert.step <= until or index == len(found) - 1)
        ]
        before, rate = rate, _rate(run, first, until)
        text = _sentence(course, start, end) + (rate if rate != before else "") + "."  # what has not changed needs no second word
        names = tuple(dict.fromkeys(alert.name for alert in sorted(inside, key=lambda alert: alert.step)))
        told.append(Phase(first, until, course, start, end, text, names))
    return tuple(told)


def _courses(steps: np.ndarray, values: np.ndarray) -> list[tuple[int, int, Course, float, float]]:
    """Return (first step, last step, course, loss at the start, at the end) of every phase."""
    finite = np.isfinite(values)
    known = np.flatnonzero(finite)
    # From the last finite value on the run is lost; single values that are not finite before it are no phase.
    end = known[-1] + 1 if len(known) else 0
    tail = [(int(steps[end]), int(steps[-1]), "not finite", math.nan, float(values[-1]))] if end < len(values) else []
    if not len(known):
        return tail  # type: ignore[return-value]
    if len(known) < _FEWEST_VALUES:
        whole = (int(steps[0]), int(steps[end - 1]), "too short", float(values[known[0]]), float(values[known[-1]]))
        return [whole, *tail]  # type: ignore[list-item]
    count = min(_MOST_MEDIANS, max(len(known) // 4, min(len(known) // 2, _FEWEST_VALUES)))
    groups = np.array_split(known, count)
    medians = np.array([np.median(values[group]) for group in groups])
    positive = bool(medians.min() > 0)
    height = np.log(medians) if positive else medians
    span = float(np.ptp(height))
    scatter = max(_scatter(height), _LEAST_SCATTER * span)
    pieces = _pieces(height, scatter)
    rate = (height[0] - height[-1]) / count
    told: list[tuple[int, int, Course, float, float]] = []
    for start, stop in pieces:
        line = _line(height[start:stop])
        course = _course(height[start:stop], line, scatter, span, rate, alone=len(pieces) == 1)
        if course == "level":
            line[:] = np.median(height[start:stop])
        before, now = (float(math.exp(end) if positive else end) for end in (line[0], line[-1]))
        begin = int(steps[groups[start][0]]) if start else int(steps[0])
        last = int(steps[groups[stop - 1][-1]])
        if told and told[-1][2] == course:
            begin, before = told[-1][0], told[-1][3]
            told.pop()
        told.append((begin, last, course, before, now))
    return [*told, *tail]  # type: ignore[list-item]


def _scatter(height: np.ndarray) -> float:
    """Return the standard deviation of noise around a smooth course, from the median of its second differences."""
    return float(1.4826 * np.median(np.abs(np.diff(height, 2))) / math.sqrt(6)) if len(height) > 2 else 0.0


def _pieces(height: np.ndarray, scatter: float) -> list[tuple[int, int]]:
    """Cut a series into straight pieces; see the module. The best cut of every length is built from those of the shorter ones."""
    count = len(height)
    cost = _costs(height) / (scatter**2 or 1.0)
    best = np.full((_MOST_PIECES + 1, count + 1), math.inf)
    cut = np.zeros((_MOST_PIECES + 1, count + 1), dtype=int)
    best[0, 0] = 0.0
    for number in range(1, _MOST_PIECES + 1):
        totals = best[number - 1][:-1, None] + cost  # up to where the last piece starts, and from there to where it ends
        cut[number] = np.argmin(totals, axis=0)
        best[number] = np.min(totals, axis=0)
    scores = [best[number, count] + 3 * number * math.log(count) for number in range(1, _MOST_PIECES + 1)]
    stop, found = count, []
    for number in range(int(np.argmin(scores)) + 1, 0, -1):
        found.append((int(cut[number, stop]), stop))
        stop = int(cut[number, stop])
    return found[::-1]


def _costs(height: np.ndarray) -> np.ndarray:
    """Return the sum of squares around a straight line, by start and end of the piece; infinite for pieces too short for one."""
    count = len(height)
    x = np.arange(count, dtype=float)
    height = height - height.mean()  # keeps the differences of sums precise
    sums = [np.append(0.0, np.cumsum(terms)) for terms in (x, height, x * x, height * height, x * height)]
    n = np.arange(count + 1)[None, :] - np.arange(count)[:, None]
    sx, sy, sxx, syy, sxy = (total[None, :] - total[:-1, None] for total in sums)
    with np.errstate(all="ignore"):
        rss = (syy - sy**2 / n) - (sxy - sx * sy / n) ** 2 / (sxx - sx**2 / n)
    return np.where(n >= min(_FEWEST_MEDIANS, count), np.maximum(rss, 0.0), math.inf)


def _line(height: np.ndarray) -> np.ndarray:
    """Return the straight line through a series, at its points."""
    x = np.arange(len(height)) - (len(height) - 1) / 2
    return height.mean() + x * float(x @ height) / max(float(x @ x), 1.0)


def _course(height: np.ndarray, line: np.ndarray, scatter: float, span: float, rate: float, alone: bool) -> Course:
    change = float(line[-1] - line[0])
    error = max(scatter, float(np.std(height - line))) * math.sqrt(12 / len(height))
    if abs(change) <= max(3 * error, _LEAST_CHANGE * span):
        return "level"
    if change > 0:
        return "rises"
    return "falls fast" if not alone and rate > 0 and -change > 2 * rate * (len(height) - 1) else "falls"


def _sentence(course: Course, start: float, end: float) -> str:
    before, now = (format_value(float(f"{value:.3g}")) for value in (start, end))
    if course == "not finite" or (course == "too short" and before == now):
        return f"The loss is {now}"
    if course == "too short":
        return f"The loss goes from {before} to {now}"
    return f"The loss stays near {now}" if course == "level" else f"The loss {course} from {before} to {now}"


def _rate(run: Run, first: int, last: int) -> str:
    """Return what the learning rate does between two steps, as the end of a sentence; empty where it was not recorded."""
    try:
        steps, values = run.series("learning_rate")
    except (KeyError, ValueError):
        return ""
    if values.ndim != 1:
        return ""
    start, stop = np.searchsorted(steps, [first, last + 1])
    # The value before says what held at the beginning, and whether the rate jumped just there.
    inside, at = values[max(start - 1, 0) : stop], steps[max(start - 1, 0) : stop]
    usable = np.isfinite(inside)
    inside, at = inside[usable], at[usable]
    if not len(inside):
        return ""
    with np.errstate(all="ignore"):
        ratio = inside[1:] / inside[:-1]
    jumps = np.flatnonzero((ratio >= _JUMP) | (ratio <= 1 / _JUMP))
    if 0 < len(jumps) <= _MOST_JUMPS:
        changes = [f"to {format_value(float(inside[jump + 1]))} at step {int(at[jump + 1]):,}" for jump in jumps]
        return f", while the learning rate goes from {format_value(float(inside[0]))} {listed(changes)}"
    first_rate, last_rate = format_value(float(inside[0])), format_value(float(inside[-1]))
    if first_rate == last_rate:
        return f", at a learning rate of {last_rate}"
    return f", while the learning rate goes from {first_rate} to {last_rate}"
