"""Course: a long series in few numbers, kept up to date at the cost of what was appended.

A gauge is a few hundred pixels wide, and a refresh must not take longer at the millionth step than at the hundredth. So of a
series that is longer than :data:`MOST` points two things are kept:

- a *sample* of true points, for whatever a gauge calculates. A step is in it if the golden ratio times the step, modulo 1, is
  below a threshold: such steps are evenly spread, they do not depend on the schedule, and the same ones are taken of every
  reading, so that readings can still be compared step by step. The last :data:`RECENT` points are always in it, since verdicts
  are about them.
- an *envelope* for what is drawn: least and greatest value of equally wide intervals of steps, about one a pixel, so that a
  spike of a single step is seen; and where there are values that cannot be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from cockpit_lite.run import Run

#: Up to so many points a series is used as it is.
MOST = 8_192
#: Points at the end that are in every sample.
RECENT = 64
#: Intervals of an envelope; it has between half as many and so many.
BINS = 1_024

#: 2^64 over the golden ratio: multiples of it, modulo 2^64, are as evenly spread as any sequence can be.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)

_courses: WeakKeyDictionary[Run, dict[str, Course]] = WeakKeyDictionary()


def course(run: Run, name: str) -> Course | None:
    """Return the course of a reading of single numbers; None if it was never measured, holds arrays, or is short."""
    try:
        steps, values = run.series(name)
    except (KeyError, ValueError):
        return None
    if values.ndim != 1 or len(steps) <= MOST:
        return None
    known = _courses.setdefault(run, {})
    if name not in known:
        known[name] = Course()
    known[name].update(steps, values, run.edition(name))
    return known[name]


@dataclass(frozen=True)
class Envelope:
    """What a long series looks like; one entry for each interval of steps that has a point.

    Attributes:
        first: First step of the interval with a point.
        last: Last one.
        low: Least finite value; NaN: there is none.
        high: Greatest finite value; NaN: there is none.
        positive: Least finite value above zero; NaN: there is none.
        broken: First step whose value is not finite, or -1.
        below: First step whose value is zero or less, or -1.
    """

    first: np.ndarray
    last: np.ndarray
    low: np.ndarray
    high: np.ndarray
    positive: np.ndarray
    broken: np.ndarray
    below: np.ndarray

    def joined(self, count: int) -> Envelope:
        """Return the envelope with so many neighbouring intervals joined into one."""
        if count <= 1:
            return self
        starts = np.arange(0, len(self.first), count)
        ends = np.append(starts[1:], len(self.first)) - 1
        return Envelope(
            self.first[starts],
            self.last[ends],
            np.fmin.reduceat(self.low, starts),
            np.fmax.reduceat(self.high, starts),
            np.fmin.reduceat(self.positive, starts),
            _first_of(self.broken, starts),
            _first_of(self.below, starts),
        )

    def ends(self, log: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return least and greatest value that can be drawn; NaN: there is none."""
        return (self.positive, np.where(self.high > 0, self.high, np.nan)) if log else (self.low, self.high)

    def middle(self, log: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and values of a line in the middle of the area, which is no wider than a line where there is no noise."""
        low, high = self.ends(log)
        return (self.first + self.last) // 2, np.sqrt(low) * np.sqrt(high) if log else low / 2 + high / 2

    def bars(self, log: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return steps and both ends of an area that looks like the series, as wide as the interval where there is one spike."""
        low, high = self.ends(log)
        return np.column_stack([self.first, self.last]).ravel(), np.repeat(low, 2), np.repeat(high, 2)


class Course:
    """See the head of this file."""

    def __init__(self) -> None:
        self._edition: int | None = None
        self._count = 0
        self._chosen, self._places = np.empty(0, np.int64), np.empty(0, np.uint64)
        self._forget()

    def update(self, steps: np.ndarray, values: np.ndarray, edition: int) -> None:
        """Take in what was appended.

        Args:
            steps: Rising.
            values: One a step.
            edition: Another one than the last time: what was there before has changed, too.
        """
        if edition != self._edition or len(steps) < self._count:
            self._edition = edition
            self._forget()
        if len(steps) > self._count:
            self._choose(steps[self._count :])
            self._widen(steps[self._count :], values[self._count :], steps[0])
            self._count = len(steps)
            recent = np.arange(max(0, self._count - RECENT), self._count)
            places = np.concatenate([self._chosen[self._chosen < recent[0]], recent])
            self.sample = steps[places], values[places]

    @property
    def envelope(self) -> Envelope:
        """The envelope of all points."""
        there = np.flatnonzero(self._last_steps != _NEVER)
        columns = (self._first_steps, self._last_steps, self._low, self._high, self._positive, self._broken, self._below)
        return Envelope(*(column[there] for column in columns))

    def _forget(self) -> None:
        self._count = 0
        self._chosen, self._places = np.empty(0, np.int64), np.empty(0, np.uint64)
        self._threshold = np.uint64(2**64 - 1)
        self.sample = np.empty(0, np.int64), np.empty(0)
        self._shift = np.uint64(0)
        self._first_steps, self._last_steps = np.full(BINS, _NEVER), np.full(BINS, _NEVER)
        self._broken, self._below = np.full(BINS, -1), np.full(BINS, -1)
        self._low, self._high, self._positive = (np.full(BINS, np.nan) for _ in range(3))

    def _choose(self, steps: np.ndarray) -> None:
        """Choose the steps of the sample, and let half of them go when there are too many."""
        if not self._count:  # what would go again at once is not looked at
            self._threshold >>= np.uint64(max(0, (2 * len(steps) // MOST).bit_length() - 2))
        with np.errstate(over="ignore"):
            places = steps.astype(np.uint64) * _GOLDEN
        chosen = np.flatnonzero(places <= self._threshold)
        self._places = np.concatenate([self._places, places[chosen]])
        self._chosen = np.concatenate([self._chosen, chosen + self._count])
        while len(self._chosen) > MOST // 2 and self._threshold:
            self._threshold >>= np.uint64(1)
            kept = self._places <= self._threshold
            self._places, self._chosen = self._places[kept], self._chosen[kept]

    def _widen(self, steps: np.ndarray, values: np.ndarray, origin: np.int64) -> None:
        """Take points into the envelope; its intervals become twice as wide whenever they do not reach far enough."""
        distance = steps.astype(np.uint64) - np.uint64(int(origin) % 2**64)  # exact for any two steps
        while distance[-1] >> self._shift >= BINS:
            self._shift += np.uint64(1)
            self._halve()
        interval = (distance >> self._shift).astype(np.int64)
        starts = np.append(0, np.flatnonzero(np.diff(interval)) + 1)
        ends = np.append(starts[1:], len(steps)) - 1
        there = interval[starts]
        finite = np.isfinite(values)
        drawn = values if finite.all() else np.where(finite, values, np.nan)
        low, high = np.fmin.reduceat(drawn, starts), np.fmax.reduceat(drawn, starts)
        some_below = not low.min() > 0
        positive = np.fmin.reduceat(np.where(drawn > 0, drawn, np.nan), starts) if some_below else low
        fresh = self._last_steps[there] == _NEVER
        self._first_steps[there] = np.where(fresh, steps[starts], self._first_steps[there])
        self._last_steps[there] = steps[ends]
        self._low[there] = np.fmin(self._low[there], low)
        self._high[there] = np.fmax(self._high[there], high)
        self._positive[there] = np.fmin(self._positive[there], positive)
        for known, some, found in ((self._broken, drawn is not values, ~finite), (self._below, some_below, drawn <= 0)):
            if some:
                places = np.flatnonzero(found)
                first = places[np.flatnonzero(np.diff(interval[places], prepend=-1))]
                empty = first[known[interval[first]] < 0]
                known[interval[empty]] = steps[empty]

    def _halve(self) -> None:
        """Join every two intervals."""
        first, last = self._first_steps.reshape(-1, 2), self._last_steps.reshape(-1, 2)
        self._fill(self._first_steps, np.where(first[:, 0] != _NEVER, first[:, 0], first[:, 1]), _NEVER)
        self._fill(self._last_steps, np.where(last[:, 1] != _NEVER, last[:, 1], last[:, 0]), _NEVER)
        self._fill(self._low, np.fmin(*self._low.reshape(-1, 2).T), np.nan)
        self._fill(self._high, np.fmax(*self._high.reshape(-1, 2).T), np.nan)
        self._fill(self._positive, np.fmin(*self._positive.reshape(-1, 2).T), np.nan)
        for known in (self._broken, self._below):
            self._fill(known, _first_of(known, np.arange(0, BINS, 2)), -1)

    @staticmethod
    def _fill(column: np.ndarray, values: np.ndarray, rest: float) -> None:
        column[: len(values)], column[len(values) :] = values, rest


#: In place of a step, where an interval has no point.
_NEVER = np.iinfo(np.int64).min


def _first_of(steps: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the first known step (not -1) of each piece, or -1."""
    far = np.iinfo(np.int64).max
    found = np.minimum.reduceat(np.where(steps < 0, far, steps), starts)
    return np.where(found == far, -1, found)
