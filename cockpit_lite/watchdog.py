"""Watchdog: an instrument, a rule or a sink that does not come back is ended, and the training goes on without it.

A thread looks once a second whether the same call is still under way. When one has lasted too long, an exception is raised in the
thread that makes it (``PyThreadState_SetAsyncExc``), where :meth:`Watchdog.call` turns it into a TimeoutError. It must never be
raised in the user's own code, so it is taken back if the call has come to its end meanwhile.

Python raises such an exception between two of its instructions: what is blocked inside of C (a lock, a sleep, a socket without a
time limit) is ended only when that returns; until then training waits, and the user is told once for whom. Time is counted in
looks, not read off a clock: a process that was stopped, or a computer that was asleep, has not hung. Who stands in a debugger is
left alone. Knows no torch.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from types import FrameType
from typing import Any, TypeVar

from cockpit_lite.isolation import warn

Result = TypeVar("Result")

#: Seconds that a call may take, unless others of the same part have taken long, too.
PATIENCE = 60.0
#: The first call of a part may take so many times as long: it may import, compile, or wait for a network.
FIRST = 10
#: A call may take so many times as long as the longest one before it.
USUAL = 20
#: Looks after which what was ended and is still there is blocked.
BLOCKED = 10
#: Seconds between two looks.
INTERVAL = 1.0

_DEBUGGERS = ("bdb", "pdb", "pydevd", "_pydevd", "debugpy")


class Hanging(BaseException):
    """Raised in a call that lasts too long; no ``except Exception`` on the way may stop it."""


class Watchdog:
    """Watches the calls that one thread makes; its own thread begins with the first of them and ends with :meth:`close`.

    Args:
        at_least: Seconds that every call may take, whatever its part says.
        interval: Seconds between two looks.
    """

    def __init__(self, at_least: float = 0.0, interval: float = INTERVAL):
        self._at_least = at_least
        self._interval = interval
        self._watched = threading.get_ident()
        self._call: tuple[object, Hashable] | None = None  # the one under way; every one is an object of its own
        self._ended: object = None  # the one that was to be ended
        self._where = ""
        self._known: set[Hashable] = set()
        self._longest: dict[Hashable, int] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def call(self, part: object, key: Hashable, work: Callable[[], Result]) -> Result:
        """Return what ``work`` returns.

        Args:
            part: Whose call it is. Its ``patience`` says how many seconds it may take, None: as long as it likes.
            key: Calls with the same key take about the same time.
            work: What is done.

        Raises:
            TimeoutError: if it lasted too long; and whatever ``work`` raises.
        """
        if threading.get_ident() != self._watched:
            return work()
        if self._thread is None:
            self._start()
        call = self._call = (part, key)
        try:
            try:
                result = work()
            finally:
                self._call = None  # first of all, and in one piece: from here on nobody may end it
                if self._ended is call:
                    self._take_back()
        except Hanging:
            self._call = self._ended = None  # it may have come just before the first line of what follows the work
            raise TimeoutError(f"it did not come back{self._where}") from None
        except BaseException:
            if self._ended is call:  # Ctrl-C came on the way there
                self._take_back()
            raise
        self._known.add(key)
        return result

    def close(self) -> None:
        """End the thread. Idempotent; a later call begins it again."""
        thread, self._thread = self._thread, None
        _open.discard(self)
        if thread is not None:
            self._stop.set()
            if thread is not threading.current_thread():
                thread.join()

    def _start(self) -> None:
        self._stop = threading.Event()
        arguments = (weakref.ref(self), self._stop, self._interval)
        thread = threading.Thread(target=_look, args=arguments, name="cockpit-lite watchdog", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # there are too many already: then nobody is watched
            self._watched = 0
        else:
            self._thread = thread
            _open.add(self)

    def _take_back(self) -> None:
        """The call is over: what was raised in this thread and has not arrived yet must not arrive any more."""
        interrupt: BaseException | None = None
        while True:
            try:
                with self._lock:
                    _raise_in(self._watched, None)
                    self._ended = None
                break
            except BaseException as error:  # this is where it may arrive; or Ctrl-C, which is for the user
                interrupt = interrupt if isinstance(error, Hanging) else error
        if interrupt is not None:
            raise interrupt

    # In the watchdog's thread

    def _limit(self, call: tuple[object, Hashable]) -> float:
        """Return how many looks the call may last."""
        part, key = call
        patience = getattr(part, "patience", PATIENCE)
        if patience is None:
            return float("inf")
        seconds = max(patience if key in self._known else FIRST * patience, self._at_least)
        return max(seconds / self._interval, USUAL * self._longest.get(key, 0))

    def _end(self, call: tuple[object, Hashable], looks: int) -> None:
        frame = sys._current_frames().get(self._watched)
        if frame is None or not _may_end(frame):
            return
        where = f" within {looks * self._interval:.0f} s and was ended in {_place(frame)}"
        del frame  # it keeps everything alive that is in it
        with self._lock:
            # The call sets the first and then looks at the second, this the other way round: one of the two sees the other.
            self._where, self._ended = where, call
            if self._call is call:
                _raise_in(self._watched, Hanging)

    def _say(self, call: tuple[object, Hashable], looks: int) -> None:
        """Tell the user who keeps training waiting."""
        frame = sys._current_frames().get(self._watched)
        if frame is None or not _may_end(frame):
            return
        part, place = call[0], _place(frame)
        del frame
        warn(
            f"{getattr(part, 'name', None) or type(part).__name__!r} has not come back for {looks * self._interval:.0f} s. It is "
            f"blocked in {place} and cannot be ended there; training waits until it returns, or until you press Ctrl-C."
        )


def _look(reference: weakref.ref[Watchdog], stop: threading.Event, interval: float) -> None:
    """Look once in an interval what is under way, until there is no one left to look for."""
    seen: tuple[object, Hashable] | None = None
    looks = 0
    while not stop.wait(interval):
        watchdog = reference()
        if watchdog is None:
            return
        call = watchdog._call
        if call is None or call is not seen:
            if seen is not None and looks:
                watchdog._longest[seen[1]] = max(looks, watchdog._longest.get(seen[1], 0))
            seen, looks = call, 0
        else:
            looks += 1
            limit = watchdog._limit(call)
            if looks > limit:
                watchdog._end(call, looks)
            if limit + BLOCKED < looks <= limit + BLOCKED + 1:
                watchdog._say(call, looks)
        del watchdog, call


def _may_end(frame: FrameType | None) -> bool:
    """Return whether a thread that is there is in a call, nobody is debugging, and nothing is just being put back."""
    in_call = False
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_DEBUGGERS):
            return False
        if frame.f_code.co_name == "__exit__" and not in_call:
            return False
        in_call = in_call or frame.f_code is Watchdog.call.__code__
        frame = frame.f_back
    return in_call


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno})"


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have a thread raise an exception where it is; None takes back one that it has not raised yet."""
    set_exception: Any = ctypes.pythonapi.PyThreadState_SetAsyncExc
    set_exception(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))


#: Those whose thread may be running.
_open: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _close_all() -> None:
    """A process that is about to fork, as for the workers of a loader, should have no thread of ours: the child would lack it."""
    for watchdog in tuple(_open):
        watchdog.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_close_all)
