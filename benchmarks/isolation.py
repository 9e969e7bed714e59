"""Faults put into every part of a cockpit: the training must end as if nobody had watched, and one warning must name what is off.

Each fault is injected into a training that is watched with what it concerns; weights, gradients, buffers, optimizer state, random
numbers, hooks, modes, warnings and exceptions are compared, bit by bit, with the training that nobody watches.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import io
import itertools
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.page import arguments, publish, table
from cockpit_lite import cockpit as cockpit_module
from cockpit_lite import cost, live, pulse, run_log, schedule, tracked_step, transfer
from cockpit_lite.curvature import forward_probe
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis import history as history_module
from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.probes import activations, data, gradient, probe_batch, sample_losses, sampled_curvature, wiring
from cockpit_lite.probes.per_sample import PerSampleProbe
from cockpit_lite.sink import Sink
from tests.combinations import Combination
from tests.identity import EVERYTHING, CockpitFactory, Outcome, compare, outcome
from tests.optimizers import OPTIMIZERS
from tests.zoo import ZOO

Injection = Callable[[Path], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        group: Which part of the cockpit it concerns.
        name: What.
        inject: Called with the run folder; while the context is open, it goes wrong.
        words: What the one warning must say; empty: there may be none, as where the part says so in the report.
        options: Of the cockpit.
    """

    group: str
    name: str
    inject: Injection
    words: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def happened(self) -> bool:
        """Whether it went wrong at all: an instrument may have nothing to measure, a rule may not apply."""
        return getattr(self.inject, "happened", True)


class InjectedError(RuntimeError):
    """What nobody expects."""


ERRORS: tuple[BaseException, ...] = (
    InjectedError("injected"), torch.OutOfMemoryError("CUDA out of memory (injected)"), MemoryError("injected"),
    RecursionError("injected"), AssertionError(), ZeroDivisionError("injected"), KeyError("injected"), StopIteration("injected"),
)  # fmt: skip
#: What an instrument may return instead of readings.
NONSENSE: Mapping[str, Callable[[str], Any]] = {
    "nothing": lambda name: None,
    "text": lambda name: {name: "high"},
    "a tensor of a million": lambda name: {name: torch.zeros(1000, 1000)},
    "complex numbers": lambda name: {name: torch.tensor(1j)},
    "a list": lambda name: [name],
    "names that are none": lambda name: {3: 1.0},
}


class Failing:
    """Replaces a function or method, and knows whether it was called."""

    def __init__(self, owner: Any, attribute: str, does: Callable[[], Any], after: int = 0):
        self._owner, self._attribute, self._does, self._after = owner, attribute, does, after
        self._calls = 0

    @property
    def happened(self) -> bool:
        """Whether it went wrong at all."""
        return self._calls > self._after

    def __call__(self, folder: Path) -> AbstractContextManager[Any]:
        """Return the context in which it is replaced."""
        original = getattr(self._owner, self._attribute)

        def fails(*args: Any, **kwargs: Any) -> Any:
            self._calls += 1
            return self._does() if self.happened else original(*args, **kwargs)

        return mock.patch.object(self._owner, self._attribute, fails)


def raising(owner: Any, attribute: str, error: BaseException, after: int = 0) -> Injection:
    """Have a function or method raise, from its call number ``after`` on."""

    def does() -> Any:
        raise error

    return Failing(owner, attribute, does, after)


def returning(owner: Any, attribute: str, value: Any) -> Injection:
    """Have a method return something else."""
    return Failing(owner, attribute, lambda: value)


def _instruments() -> Iterator[Fault]:
    kinds = itertools.cycle([*ERRORS, *NONSENSE, "NaN"])
    for name, kind in INSTRUMENTS.items():
        what = next(kinds)
        options = {"instruments": list(dict.fromkeys(["grad_norm", name]))}
        if what == "NaN":
            yield Fault(
                "instruments", f"{name} returns NaN", returning(kind, "measure", {name: torch.tensor(torch.nan)}), "", options
            )
        elif isinstance(what, str):
            fault = returning(kind, "measure", NONSENSE[what](name))
            yield Fault("instruments", f"{name} returns {what}", fault, f"{name!r}", options)
        else:
            yield Fault(
                "instruments", f"{name} raises {type(what).__name__}", raising(kind, "measure", what), f"{name!r}", options
            )


def _probes() -> Iterator[Fault]:
    places: list[tuple[Any, str]] = [
        (activations.ActivationProbe, "start"), (activations.ActivationProbe, "activations"),
        (data.DataProbe, "start"), (data.DataProbe, "before_backward"), (data.DataProbe, "data"),
        (wiring.WiringProbe, "start"), (wiring.WiringProbe, "before_backward"), (wiring.WiringProbe, "wiring"),
        (probe_batch.ProbeBatch, "start"), (probe_batch.ProbeBatch, "tangent_kernel"),
        (forward_probe.ForwardProbe, "start"), (forward_probe.ForwardProbe, "settle"),
        (sampled_curvature.SampledCurvature, "start"), (sampled_curvature.SampledCurvature, "draw"),
        (PerSampleProbe, "start"), (PerSampleProbe, "backward_begins"), (PerSampleProbe, "backward_ends"),
        (PerSampleProbe, "statistics"), (PerSampleProbe, "gradients"), (PerSampleProbe, "micro_batches"),
        (sample_losses.SampleLosses, "before_backward"), (sample_losses.SampleLosses, "by_sample"),
        (gradient.GradientProbe, "record"), (gradient.GradientProbe, "before_backward"), (gradient.GradientProbe, "gradients"),
        (tracked_step, "Curvature"), (tracked_step, "Replay"), (tracked_step.TrackedStep, "finish"),
        (tracked_step.TrackedStep, "keep_weights"), (tracked_step.TrackedStep, "measure_gradient"),
        (pulse.Pulse, "take"), (cost.CostBook, "book"), (transfer.HostTransfer, "submit"), (transfer.Row, "put"),
        (schedule.Budget, "allows"), (schedule.Budget, "end_step"), (history_module.History, "add"),
    ]  # fmt: skip
    errors = itertools.cycle(ERRORS)
    for owner, attribute in places:
        options = {"budget": 0.5} if owner is schedule.Budget else {}
        # From the second call on: what fails before the first step is told before training begins.
        fault = raising(owner, attribute, next(errors), after=1)
        yield Fault(
            "probes and steps", f"{getattr(owner, '__qualname__', 'tracked_step')}.{attribute} raises", fault, "", options
        )


def _rules() -> Iterator[Fault]:
    errors = itertools.cycle(ERRORS)
    for rule in RULES:
        options = {"instruments": "light"}
        yield Fault("rules", f"{rule.code} {rule.name} raises", raising(type(rule), "check", next(errors)), rule.code, options)


class _Hanging(Failing):
    """Replaces a method of a class by one that never comes back; the watchdog waits a tenth of a second for it, not a minute."""

    def __init__(self, owner: Any, attribute: str):
        super().__init__(owner, attribute, _hang)

    @contextmanager
    def __call__(self, folder: Path) -> Iterator[None]:
        quick = partial(cockpit_module.Watchdog, interval=0.01)
        with (
            mock.patch.object(cockpit_module, "Watchdog", quick),
            mock.patch.object(self._owner, "patience", 0.01),
            super().__call__(folder),
        ):
            yield


def _hang() -> None:
    while True:
        pass


def _hanging() -> Iterator[Fault]:
    for name, kind in INSTRUMENTS.items():
        options = {"instruments": list(dict.fromkeys(["grad_norm", name]))}
        yield Fault("hanging instruments", f"{name} hangs", _Hanging(kind, "measure"), f"{name!r}", options)
    for rule in RULES:
        fault = _Hanging(type(rule), "check")
        yield Fault("hanging rules", f"{rule.code} {rule.name} hangs", fault, rule.code, {"instruments": "light"})
    for method in ("open", "step", "alert", "close"):
        options = {"instruments": "light", "sinks": [Sink()]}
        fault = _Hanging(Sink, method)
        yield Fault("hanging sinks", f"a sink's {method} hangs", _with_alert(fault), "The sink 'sink'", options)


def _with_alert(fault: Injection) -> Injection:
    return lambda folder: _with(_not_a_number(folder), fault(folder))


def _full_disk(folder: Path) -> AbstractContextManager[Any]:
    create = run_log.RunWriter._create

    def on_full_device(writer: Any, name: str, undo: Any) -> Any:
        create(writer, name, undo).close()
        (writer.folder / name).unlink()
        (writer.folder / name).symlink_to("/dev/full")  # every write to it fails as on a disk without room
        return open(writer.folder / name, "a", encoding="utf-8")

    return mock.patch.object(run_log.RunWriter, "_create", on_full_device)


@contextmanager
def _folder_goes(folder: Path, then: Callable[[Path], Any] = lambda folder: None) -> Iterator[None]:
    """Delete the folder in the middle of the training."""
    block = run_log.RunWriter.step
    calls = itertools.count()

    def step(writer: Any, *args: Any, **kwargs: Any) -> None:
        if next(calls) == 2:
            shutil.rmtree(writer.folder)
            then(writer.folder)
        block(writer, *args, **kwargs)

    with mock.patch.object(run_log.RunWriter, "step", step):
        yield


@contextmanager
def _no_file_handles(folder: Path) -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir("/proc/self/fd")}
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(used) + 4, hard))
    taken: list[int] = []
    step = run_log.RunWriter.step

    def and_none_are_left(writer: Any, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        step(writer, *args, **kwargs)

    try:
        with mock.patch.object(run_log.RunWriter, "step", and_none_are_left):
            yield
    finally:
        for handle in taken:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def _small_files(folder: Path) -> Iterator[None]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def _log() -> Iterator[Fault]:
    no_room = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    light = {"instruments": "light"}
    for attribute, error in (
        ("step", no_room), ("block", no_room), ("not_measured", MemoryError("injected")), ("alert", no_room),
        ("flush", OSError(errno.EIO, "input/output error")), ("close", no_room), ("_append", UnicodeError("injected")),
        ("_write_info", OSError(errno.EROFS, "read-only file system")),
    ):  # fmt: skip
        after = 1 if attribute == "_write_info" else 0
        options = {**light, "schedule": lambda step: step % 2 == 0} if attribute == "block" else light
        yield Fault("log", f"{attribute} raises {error}", raising(run_log.RunWriter, attribute, error, after), "", options)
    yield Fault("log", "the disk is full", _full_disk, "cannot be written any more", light)
    yield Fault("log", "the folder is deleted", _folder_goes, "", light)
    yield Fault("log", "a file takes the folder's place", partial(_folder_goes, then=lambda f: f.write_text("")), "", light)
    yield Fault("log", "no file handle is left", _no_file_handles, "", light)
    yield Fault("log", "files may have 3,000 bytes", _small_files, "cannot be written any more", {"instruments": "full"})


class _FailingSink(Sink):
    """Fails at one of its methods."""

    name = "failing"

    def __init__(self, method: str):
        super().__init__()
        setattr(self, method, self._fail)

    def _fail(self, *args: Any) -> None:
        raise ConnectionError("the tracker is gone")


def _fail(*args: Any) -> Any:
    raise InjectedError("the user's own")


def _late(step: int) -> bool:
    if step == 2:
        raise InjectedError("the user's own")
    return True


@contextmanager
def _closed_terminal(folder: Path) -> Iterator[None]:
    closed = io.StringIO()
    closed.close()
    with mock.patch.object(sys, "stderr", closed), mock.patch.object(sys, "stdout", closed):
        yield


def _outside() -> Iterator[Fault]:
    light = {"instruments": "light"}
    alerting = {**light, "on_alert": _fail}
    yield Fault("user and outside", "on_alert raises", _not_a_number, "on_alert raised", alerting)
    yield Fault(
        "user and outside", "the schedule raises", lambda folder: contextlib.nullcontext(), "the user's own", {"schedule": _late}
    )
    for method in ("open", "step", "alert", "close"):
        options = {**light, "sinks": [_FailingSink(method)]}
        yield Fault("user and outside", f"a sink's {method} raises", _not_a_number, "The sink 'failing'", options)
    yield Fault(
        "user and outside", "alerts cannot be printed", lambda folder: _with(_not_a_number(folder), _closed_terminal(folder))
    )
    yield Fault(
        "viewer",
        "starting it raises",
        raising(live, "ProcessViewer", OSError("no process")),
        "shown live",
        {**light, "live": "window"},
    )
    yield Fault(
        "viewer",
        "no process can be started",
        raising(live.subprocess, "Popen", OSError(errno.EAGAIN, "no process")),
        "",
        {**light, "live": "window"},
    )
    yield Fault("viewer", "it is killed", partial(_viewer_gets, signal.SIGKILL), "", {**light, "live": "window"})
    yield Fault("viewer", "it hangs", partial(_viewer_gets, signal.SIGSTOP), "", {**light, "live": "window"})
    yield Fault(
        "report",
        "it cannot be made",
        raising(cockpit_module, "load_run", InjectedError("injected")),
        "",
        {**light, "report": True},
    )


@contextmanager
def _with(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def _not_a_number(folder: Path) -> AbstractContextManager[Any]:
    """Have a rule see a loss that is none, so that there is an alert; the training itself is as ever."""
    add = history_module.History.add

    def with_nan(history: Any, step: int, values: Mapping[str, Any]) -> None:
        add(history, step, {**values, "loss": float("nan")} if step == 1 else values)

    return mock.patch.object(history_module.History, "add", with_nan)


@contextmanager
def _viewer_gets(number: signal.Signals, folder: Path) -> Iterator[None]:
    started: list[Any] = []
    popen = live.subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> Any:
        process = popen([sys.executable, "-c", "import time; time.sleep(60)"], **{k: v for k, v in kwargs.items() if k != "env"})
        process.send_signal(number)
        started.append(process)
        return process

    with mock.patch.object(live.subprocess, "Popen", start):
        yield
    for process in started:
        process.kill()
        process.wait()


def faults() -> list[Fault]:
    """Return all of them."""
    return [*_instruments(), *_probes(), *_rules(), *_log(), *_outside(), *_hanging()]


TRAINING = Combination(ZOO["mlp_batch_norm_dropout"], OPTIMIZERS[1], "validation")


class Isolation:
    """The training, plain once and then with one fault after the other."""

    def __init__(self, combination: Combination = TRAINING):
        self._train = combination.train
        with self._untold():
            self._plain = outcome(self._train, None, seed=0)

    def problems(self, fault: Fault, folder: Path) -> list[str]:
        """Return what is wrong with how a fault was taken; nothing if it was survived."""
        options = {**EVERYTHING, **fault.options}
        report = options.pop("report", False)
        with self._untold(), fault.inject(folder):
            watched = outcome(self._train, CockpitFactory(folder, report, options), seed=0)
        return list(self._judge(fault, watched))

    def _judge(self, fault: Fault, watched: Outcome) -> Iterator[str]:
        said = [message for kind, message in watched.observed["warnings"] if kind == "CockpitWarning"]
        said = [message for message in said if not message.startswith("No window")]  # there is no display
        others = [warning for warning in watched.observed["warnings"] if warning[0] != "CockpitWarning"]
        yield from compare(self._plain.observed, {**watched.observed, "warnings": others})
        # What several instruments need may take several with it, each named once.
        if len(said) > 1 and not (all("The instrument '" in message for message in said) and len(set(said)) == len(said)):
            yield f"{len(said)} warnings: {said}"
        elif fault.words and not said and fault.happened:
            yield "nobody was told"
        elif said and fault.words not in said[0]:
            yield f"the warning does not say {fault.words!r}: {said[0]}"

    @staticmethod
    @contextmanager
    def _untold() -> Iterator[None]:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def main() -> None:
    """Inject all faults and write the section."""
    options = arguments(__doc__).parse_args()
    if sys.platform != "linux":
        sys.exit("Full devices and limits are those of Linux.")
    torch.set_num_threads(1)
    isolation = Isolation()
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for number, fault in enumerate(faults()):
            problems = isolation.problems(fault, Path(folder, str(number)))
            if not fault.happened and not problems:
                continue
            counts[fault.group][0] += not problems
            counts[fault.group][1] += 1
            if problems:
                failures.append(f"- {fault.group}, {fault.name}: {problems[0][:300]}")
    total, survived = sum(count for _, count in counts.values()), sum(count for count, _ in counts.values())
    rows = [[group, injected, same] for group, (same, injected) in counts.items()]
    body = f"""
Each fault in a training of its own (batch norm, dropout, momentum, validation in between), everything else switched on. Survived:
weights, buffers, gradients, optimizer state, random numbers, hooks, modes and exceptions are those of the plain training, and for
what was switched off there was one warning, which names it. What hangs never comes back (`while True: pass`); it is ended after a
tenth of a second here, not after a minute.

{table(["part", "faults injected", "survived"], rows)}

**{survived}** of {total} survived (target: all of at least 60): {"met" if survived == total >= 60 else "**missed**"}.
{chr(10).join(failures)}
"""
    publish("isolation", "Faults of our own", body, options.print_only)


if __name__ == "__main__":
    main()
