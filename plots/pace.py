"""Pace: how long a viewer rests between two looks, so that looking costs the training next to nothing.

A viewer is a process of its own, but not of its own machine: what it takes of a core, of caches and of memory, the training may
miss. So it rests for many times as long as it has worked: a page that is brought up to date in 50 ms is looked at every two
seconds, and a quick one every second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

#: A viewer works one part in this many of the time.
SHARE = 40


class Pace:
    """Times what is done inside the ``with`` block, and says how long to rest after it.

    Args:
        least: Seconds between two looks, at least.
        most: And at most, however long one took: a picture that is too old is no use.
        clock: Seconds, monotonic; replaced in tests.

    >>> times = iter([0.0, 0.05, 10.0, 10.5, 20.0, 20.001])
    >>> pace = Pace(1.0, 4.0, lambda: next(times))
    >>> for _ in range(3):
    ...     with pace:
    ...         pass
    ...     pace.rest()
    2.0
    4.0
    1.0
    """

    def __init__(self, least: float, most: float, clock: Callable[[], float] = time.monotonic):
        self._least, self._most, self._clock = least, most, clock
        self._worked = 0.0

    def __enter__(self) -> None:
        self._begun = self._clock()

    def __exit__(self, *_: object) -> None:
        self._worked += self._clock() - self._begun

    def rest(self) -> float:
        """Return the seconds to rest for all the work since the last rest."""
        worked, self._worked = self._worked, 0.0
        return min(max(self._least, SHARE * worked), self._most)
