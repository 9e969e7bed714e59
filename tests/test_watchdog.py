"""What hangs is ended, and nothing else ever is."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from cockpit_lite.errors import CockpitWarning
from cockpit_lite.watchdog import FIRST, USUAL, Watchdog, _may_end

SHORT = SimpleNamespace(patience=0.002)  # the first call has ten times as long


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(interval=0.001)
    yield watchdog
    watchdog.close()


def hang() -> None:
    while True:
        pass


def hang_on() -> None:
    while True:
        try:
            hang()
        except BaseException:
            if random.random() < 0.3:
                raise


@pytest.mark.parametrize("work", [hang, hang_on, lambda: [None for _ in iter(int, 1)]])
def test_what_hangs_is_ended(watchdog: Watchdog, work: Callable[[], object]) -> None:
    with pytest.raises(
        TimeoutError, match=r"^it did not come back within \d+ s and was ended in .+ \(test_watchdog.py, line \d+\)$"
    ):
        watchdog.call(SHORT, "first", work)
    assert watchdog.call(SHORT, "second", lambda: 3) == 3


def test_the_user_is_told_who_cannot_be_ended(watchdog: Watchdog) -> None:
    """What is blocked inside of C is ended when that returns."""
    lock, part = threading.Lock(), SimpleNamespace(patience=0.002, name="the upload")
    lock.acquire()
    told = r"^'the upload' has not come back for .* It is blocked in .*<lambda> \(test_watchdog.py, line \d+\) and .*Ctrl-C"
    with pytest.warns(CockpitWarning, match=told) as warned, pytest.raises(TimeoutError, match="did not come back"):
        watchdog.call(part, "blocked", lambda: [lock.acquire(timeout=0.5), hang()])
    assert len(warned) == 1
    assert watchdog.call(part, "after it", lambda: 3) == 3


def test_what_comes_back_is_handed_on(watchdog: Watchdog) -> None:
    assert watchdog.call(SHORT, "quick", lambda: 1) == 1
    with pytest.raises(KeyError, match="its own"):
        watchdog.call(SHORT, "raises", lambda: {}["its own"])


def test_nothing_is_raised_behind_the_end() -> None:
    """Calls are ended at random moments, many of them around their own end; what follows stands for the user's code."""
    watchdog, stop, generator = Watchdog(interval=60.0), threading.Event(), random.Random(0)

    def end_whatever_is_under_way() -> None:
        while not stop.is_set():
            call = watchdog._call
            if call is not None:
                watchdog._end(call, 1)

    attacker = threading.Thread(target=end_whatever_is_under_way)
    ended = finished = 0
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    attacker.start()
    try:
        until = time.perf_counter() + 30  # a busy machine may give the two threads little time side by side
        while min(ended, finished) <= 300 and time.perf_counter() < until:
            rounds = generator.randrange(4)
            try:
                watchdog.call(SHORT, "work", lambda rounds=rounds: [time.sleep(0) for _ in range(rounds)])
                finished += 1
            except TimeoutError:
                ended += 1
            for _ in range(20):  # what came too late would come here, and fail the test
                pass
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        attacker.join()
        watchdog.close()
    assert finished > 100 and ended > 100, (finished, ended)


def test_what_was_raised_too_late_is_taken_back(watchdog: Watchdog) -> None:
    def work() -> int:
        # As if the watchdog had found it hanging at the very end: raised, but not arrived yet.
        call = watchdog._call
        with watchdog._lock:
            watchdog._ended = call
        return 5

    assert watchdog.call(SHORT, "late", work) == 5
    assert watchdog._ended is None


def test_what_blocks_in_c_is_ended_when_that_returns(watchdog: Watchdog) -> None:
    reached = []
    with pytest.raises(TimeoutError):
        watchdog.call(SHORT, "sleeps", lambda: (time.sleep(0.1), reached.append(1)))
    assert not reached


def test_limits(watchdog: Watchdog) -> None:
    part = SimpleNamespace(patience=2.0)
    assert watchdog._limit((part, "new")) == FIRST * 2000
    watchdog.call(part, "known", lambda: None)
    assert watchdog._limit((part, "known")) == 2000
    watchdog._longest["known"] = 500
    assert watchdog._limit((part, "known")) == USUAL * 500
    assert watchdog._limit((SimpleNamespace(patience=None), "known")) == float("inf")
    assert Watchdog(at_least=50.0, interval=0.5)._limit((part, "any")) == 100


def test_how_long_calls_take_is_remembered(watchdog: Watchdog) -> None:
    patient = SimpleNamespace(patience=60.0)
    watchdog.call(patient, "slow", lambda: time.sleep(0.05))
    deadline = time.perf_counter() + 5
    while not watchdog._longest and time.perf_counter() < deadline:
        time.sleep(0.002)
    assert 2 <= watchdog._longest["slow"] <= 60


def test_the_thread_begins_with_the_first_call_and_ends(watchdog: Watchdog) -> None:
    before = threading.enumerate()
    watchdog.call(SHORT, "quick", int)
    (thread,) = set(threading.enumerate()) - set(before)
    assert thread.daemon and thread.name == "cockpit-lite watchdog"
    watchdog.close()
    watchdog.close()
    assert not thread.is_alive()


def test_a_watchdog_that_is_forgotten_ends() -> None:
    watchdog = Watchdog(interval=0.001)
    watchdog.call(SHORT, "quick", int)
    thread = watchdog._thread
    assert thread is not None
    del watchdog
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()


def test_calls_of_another_thread_are_left_alone(watchdog: Watchdog) -> None:
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(watchdog.call(SHORT, "other", lambda: time.sleep(0.1) or watchdog._call))
    )
    thread.start()
    thread.join()
    assert found == [None]


def test_ctrl_c_goes_through(watchdog: Watchdog) -> None:
    patient = SimpleNamespace(patience=60.0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            watchdog.call(patient, "interrupted", hang)
    finally:
        signal.signal(signal.SIGINT, before)
    assert watchdog._call is None


def test_nothing_is_ended_in_a_debugger_or_while_something_is_put_back(watchdog: Watchdog) -> None:
    found: list[bool] = []

    def look() -> None:
        found.append(_may_end(sys._getframe()))

    class Cleanup:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None:
            look()

    class Leaving(Cleanup):
        def __exit__(self, *error: object) -> None:
            watchdog.call(SHORT, "last", look)  # as of a report that is written on leaving the block

    def work() -> None:
        with Cleanup():
            look()

    watchdog.call(SHORT, "cleanup", work)
    with Leaving():
        pass
    exec("call()", {"__name__": "pdb", "call": lambda: watchdog.call(SHORT, "debugged", look)})
    look()  # not in a call at all
    assert found == [True, False, True, False, False]
    watchdog.call(SHORT, "debugged", lambda: exec("look()", {"__name__": "pdb", "look": look}))
    assert not found[-1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_forks_has_no_thread_of_ours(watchdog: Watchdog) -> None:
    watchdog.call(SHORT, "before", int)
    thread = watchdog._thread
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()

    def child() -> None:
        try:
            watchdog.call(SHORT, "child", hang)
        except TimeoutError:
            writer.send("ended")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads of others
        process = context.Process(target=child)
        process.start()
    assert thread is not None and not thread.is_alive()
    assert reader.poll(10) and reader.recv() == "ended"
    process.join()
    with pytest.raises(TimeoutError):
        watchdog.call(SHORT, "parent", hang)


def test_where_no_thread_can_be_started_nothing_is_watched(watchdog: Watchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_room)
    assert watchdog.call(SHORT, "first", lambda: 1) + watchdog.call(SHORT, "second", lambda: 2) == 3
