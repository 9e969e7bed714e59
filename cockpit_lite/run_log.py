"""The run folder: an append-only writer and a tolerant reader. Knows no torch.

    RUN/
      run.json         what ran: schema version, model, optimizer, versions, seed; status when it ended
      readings.jsonl   the numbers, one JSON object a line (see below); of other ranks in readings-rank<number>.jsonl
      alerts.jsonl     one alert a line
      report.html, report.json, cockpit.png          written at the end
      .cache/          what a long log says, as arrays (log_mirror.py, run_cache.py); may be deleted at any time

Lines of ``readings.jsonl``::

    {"step": 7, "time": 1.25, "values": {"loss": 0.3, "grad_norm/0.weight": 0.1},
     "how": {"hessian_trace": {"kind": "estimated", "standard_error": 0.2}}}       one measured step
    {"steps": [8, 9], "time": 1.31, "values": {"loss": [0.3, 0.2]}}                 a block of steps
    {"step": 7, "not_measured": {"norm_test": "the batch holds one sample"}}        written when a reason changes
    {"layout": 2, "columns": ["loss", "hessian_trace", ["hessian_trace", "standard_error"]], "how": {...}}
    {"step": 8, "time": 1.4, "layout": 2, "row": [0.3, 41, 0.2]}                    as the first, see row_layout.py
    {"resumed": 8, "time": 9.5}                                                     what was recorded from step 8 on is void

``time`` is in seconds since the run began. A value is a number or a (nested) list of numbers, with seven significant digits,
which is what float32 knows; in rows with fewer where less is known, and where they are many (row_layout.py). NaN and the
infinities are written as the strings "NaN", "Infinity" and "-Infinity", so that every line is strict JSON. ``how`` says how a
value was got where that is more than "exact"; ``kind`` is one of :data:`KINDS`. No pickle anywhere: opening a run never
executes anything.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import Any, TextIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from cockpit_lite.errors import NotARunError, RunExistsError
from cockpit_lite.row_definition import Definition, define, whole
from cockpit_lite.row_layout import Layouts

#: 1: rows without packed numbers, 2: each packed by itself; those are read, too.
SCHEMA_VERSION = 3
INFO_FILE = "run.json"
READINGS_FILE = "readings.jsonl"
ALERTS_FILE = "alerts.jsonl"

#: How a value was got. "exact": up to rounding. "estimated": carries a standard error or a residual.
#: "conditional": exact given the batch statistics of batch normalisation.
KINDS = ("exact", "estimated", "conditional", "gauss-newton", "sub-batch")

#: Bytes. What is read at once must stay within memory, whatever a file holds.
LONGEST_LINE = 2**25

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """Replace what strict JSON cannot hold: NaN and the infinities become strings, unknown objects their ``str``."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [encode(item) for item in value]
    return str(value)


#: How a float is written: what float32 holds, in a third of the bytes that float64 would take.
_number = "{:.7g}".format


def _text(value: Any) -> str:
    """Return readings as JSON: as :func:`encode` has it, with floats rounded to seven significant digits.

    >>> _text({"loss": 0.1234567890123, "grad_norm": math.nan, "batch_size": 32})
    '{"loss":0.1234568,"grad_norm":"NaN","batch_size":32}'
    """
    kind = type(value)  # exact types first: a measured step has hundreds of values, and is written inside the user's step
    if kind is float and math.isfinite(value):
        return _number(value)
    if kind is str:
        return _quoted(value)
    if value is None:
        return "null"
    if kind is list:
        kinds = set(map(type, value))
        if kinds == {float} and all(map(math.isfinite, value)):
            return f"[{','.join(['%.7g'] * len(value)) % tuple(value)}]"
        if not kinds <= {int}:  # the steps of a block are in faster hands below
            return f"[{','.join([_text(item) for item in value])}]"
    if kind is dict or isinstance(value, Mapping):
        return "{" + ",".join([f"{_quoted(str(key))}:{_text(item)}" for key, item in value.items()]) + "}"
    return json.dumps(encode(value), allow_nan=False, separators=(",", ":"))


def decode(value: Any) -> Any:
    """Undo :func:`encode` for numbers: the three special strings become floats again."""
    if isinstance(value, str):
        return _SPECIAL.get(value, value)
    if isinstance(value, list):
        return [decode(item) for item in value]
    return value


def well_formed(value: Any) -> Any:
    r"""Return parsed JSON in which every text can be encoded: a lone surrogate is spelled out.

    >>> well_formed({"a\ud800": ["b\udfff", 1.5]})
    {'a\\ud800': ['b\\udfff', 1.5]}
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, list):
        return [well_formed(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): well_formed(item) for key, item in value.items()}
    return value


class RunWriter:
    """Appends to a run folder. Lines reach the operating system about once a second, and at every alert.

    Args:
        folder: Created if needed. Other files in it are left alone.
        info: What goes into ``run.json``.
        clock: Seconds, monotonic; replaced in tests.
        resumed: The step from which on the run in the folder is gone on with; None: a new run.
        seconds: How long that run had taken.
        rank: Of the process, where several train together: only the first writes ``run.json`` and ``alerts.jsonl``.

    Raises:
        RunExistsError: if the folder already holds a run, or the one that is to be resumed is still being written.
        OSError: if the folder cannot be written.
    """

    flush_interval = 1.0

    #: Seconds to wait for the processes of a training that was killed a moment ago.
    patience = 10.0

    def __init__(
        self,
        folder: str | os.PathLike[str],
        info: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
        resumed: int | None = None,
        seconds: float = 0.0,
        rank: int = 0,
    ):
        from cockpit_lite.log_mirror import Mirror  # it reads what is written here

        self.folder = Path(folder)
        self._rank = rank
        readings, alerts = readings_file(rank), alerts_file(rank)
        self.info = {"schema": SCHEMA_VERSION, **info}
        self._clock = clock
        self._last_flush = clock()
        self._start = self._last_flush - seconds
        self._lines: list[str] = []
        self._layouts = Layouts()
        with contextlib.ExitStack() as undo:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if resumed is None:
                    if any((self.folder / name).exists() for name in (readings, alerts, *(() if rank else (INFO_FILE,)))):
                        raise FileExistsError
                    # Created or refused in one go, so that of two processes only one gets the folder.
                    self._readings = self._create(readings, undo)
                    self._alerts = self._create(alerts, undo)
                    _lock(self._readings)
                else:
                    self._readings = self._reopen(readings, undo)
                    self._alerts = self._reopen(alerts, undo)
                    self._wait_for_lock()
                self._write_info()
            except OSError as error:
                raise self._refusal(error) from error
            undo.pop_all()
        self._mirror = Mirror(self.folder / readings)
        if resumed is not None:
            self._append({"resumed": resumed, "time": self._time()})
            self.alert({"resumed": resumed})

    def step(self, step: int, values: Mapping[str, Any], how: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Append the readings of one step."""
        *definition, row = self._layouts.lines(values, how or {})
        for line in definition:
            self._append(line)
        self._append({"step": step, "time": self._time(), **row})

    def block(self, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        """Append scalar readings of several steps at once; each value list is as long as ``steps``."""
        self._append({"steps": steps, "time": self._time(), "values": values})

    def not_measured(self, step: int, reasons: Mapping[str, str]) -> None:
        """Append why readings are missing; an empty reason says that the reading is back."""
        self._append({"step": step, "not_measured": reasons})

    def alert(self, alert: Mapping[str, Any]) -> None:
        """Append an alert and flush everything, so that a crash cannot take it away."""
        self._alerts.write(json.dumps(encode(alert), allow_nan=False) + "\n")
        self.flush()

    def flush(self) -> None:
        """Hand all lines to the operating system."""
        text = "".join(self._lines)
        self._lines.clear()
        self._readings.write(text)
        self._readings.flush()
        self._alerts.flush()
        self._mirror.take(text)
        self._last_flush = self._clock()

    def close(self, **final: Any) -> None:
        """Flush, add ``final`` to ``run.json`` and close the files."""
        self.flush()
        self._readings.close()
        self._alerts.close()
        self._mirror.close()
        self.info.update(final)
        self._write_info()

    def abandon(self) -> None:
        """Close the files after a failure, whatever that loses; never raises."""
        for file in (self._readings, self._alerts):
            with contextlib.suppress(OSError, ValueError):
                file.close()
        self._mirror.abandon()

    def _create(self, name: str, undo: contextlib.ExitStack) -> TextIO:
        path = self.folder / name
        file = open(path, "x", encoding="utf-8")  # noqa: SIM115
        undo.callback(path.unlink, missing_ok=True)
        undo.callback(file.close)
        return file

    def _reopen(self, name: str, undo: contextlib.ExitStack) -> TextIO:
        """Open a file to go on behind its last whole line."""
        path = self.folder / name
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise OSError(errno.EINVAL, f"{name} is no file of its own")
        with open(path, "a+b") as raw:
            raw.seek(max(raw.tell() - LONGEST_LINE, 0))
            end = raw.read()
            torn = len(end) - (end.rfind(b"\n") + 1)  # nobody could ever have read it
            if torn:
                raw.truncate(raw.tell() - torn)
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        undo.callback(file.close)
        return file

    def _wait_for_lock(self) -> None:
        until = time.monotonic() + self.patience
        while not _lock(self._readings):
            if time.monotonic() > until:
                raise RunExistsError(
                    f"The run in {self.folder} is still being written by another process, which has to end before it is resumed."
                )
            time.sleep(0.1)

    def _refusal(self, error: OSError) -> OSError:
        if isinstance(error, RunExistsError):
            return error
        if isinstance(error, FileExistsError) and self.folder.is_dir():
            return RunExistsError(
                f"{self.folder} already holds a run, and a run is never overwritten. "
                "Choose another folder with run=..., or leave run out for a new one named after the time. "
                "To go on with it after a checkpoint: resume=, with the number of the next step."
            )
        reason = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror or str(error)
        return OSError(error.errno, f"The run folder {self.folder} cannot be written ({reason}). Choose another with run=...")

    def _time(self) -> float:
        return round(self._clock() - self._start, 6)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._lines.append(_text(line) + "\n")
        if self._clock() - self._last_flush >= self.flush_interval:
            self.flush()

    def _write_info(self) -> None:
        if self._rank:
            return
        replace_file(self.folder / INFO_FILE, json.dumps(encode(self.info), indent=2, allow_nan=False).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file beside and move it into place, so that a reader never sees half of it; no link in a run leads out of it.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    temporary.unlink(missing_ok=True)  # what a crash left, or somebody put there
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _lock(file: TextIO) -> bool:
    """Take the lock that ends with the process, however it ends; return whether nobody else has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return True
    return True


def parsed(raw: bytes) -> dict[str, Any] | None:
    """Return the JSON object in a line, or None if it holds none."""
    try:
        line = json.loads(raw)
        if b"\\u" in raw or b"\xed" in raw:  # how every surrogate begins, escaped or not
            line = well_formed(line)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


class LineReader:
    """Reads the complete lines that were appended to a JSON-lines file since the last call.

    A torn last line is left for the next call; a line that is not a JSON object is counted in ``bad_lines`` and skipped.
    """

    def __init__(self, path: Path):
        self.path = path
        self.bad_lines = 0
        self._offset = 0
        self._too_long = False

    @property
    def offset(self) -> int:
        """Up to which byte the file has been read."""
        return self._offset

    def go_on(self, offset: int) -> None:
        """Go on behind what another reader has read."""
        self._offset = offset

    def new_lines(self, starting: bytes = b"", until: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the new complete lines as dictionaries.

        Args:
            starting: Lines that begin otherwise are passed over.
            until: No line is read that begins at or after this byte.
        """
        try:
            if not self.path.is_file():  # a pipe would never end to be read, nor would some devices
                return
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                for raw in iter(partial(file.readline, LONGEST_LINE), b""):
                    if until is not None and self._offset >= until:
                        return
                    if not raw.endswith(b"\n"):
                        if len(raw) < LONGEST_LINE:
                            return
                        self._too_long = True  # nothing that a cockpit writes; it is passed over in pieces
                    self._offset += len(raw)
                    if self._too_long:
                        self._too_long = not raw.endswith(b"\n")
                        self.bad_lines += not self._too_long
                        continue
                    if not raw.startswith(starting):
                        continue
                    line = parsed(raw)
                    if line is None:
                        self.bad_lines += 1
                    else:
                        yield line
        except OSError:  # not there yet, or no longer
            return


class ReadingsReader(LineReader):
    """Reads ``readings.jsonl``: of rows that refer to a layout it makes the whole lines that they stand for.

    Args:
        path: The file.
        layouts: Number -> what defines it, of those that are known; None: they are looked for in the file.
    """

    def __init__(self, path: Path, layouts: dict[int, Definition] | None = None):
        super().__init__(path)
        self._layouts = layouts

    def go_on(self, offset: int) -> None:
        """Go on behind what another reader has read."""
        super().go_on(offset)
        self._layouts = None

    def new_lines(self, starting: bytes = b"", until: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield the new complete lines as dictionaries with ``values`` by name; arguments as of LineReader."""
        yield from self.whole_lines(super().new_lines(starting, until))

    def whole_lines(self, lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the lines with those that rows stand for in place of the rows."""
        for line in lines:
            number = line.get("layout")
            if number is None:
                yield line
                continue
            layouts = self._known_layouts()
            try:
                if "row" not in line:
                    define(line, layouts)
                    continue
                yield whole(line, layouts[number])
            except (LookupError, TypeError, ValueError, AttributeError):
                self.bad_lines += 1

    def _known_layouts(self) -> dict[int, Definition]:
        """Return the layouts so far: who begins in the middle of the file finds them before it."""
        if self._layouts is None:
            self._layouts = {}
            before = LineReader(self.path)
            for line in before.new_lines(starting=b'{"layout"', until=self._offset):
                with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # counted by who read it
                    define(line, self._layouts)
        return self._layouts


def readings_file(rank: int) -> str:
    """Return the name of the file with the readings of one process.

    >>> readings_file(0), readings_file(3)
    ('readings.jsonl', 'readings-rank3.jsonl')
    """
    return READINGS_FILE if rank == 0 else f"readings-rank{rank}.jsonl"


def alerts_file(rank: int) -> str:
    """Return the name of the file with the alerts of one process."""
    return ALERTS_FILE if rank == 0 else f"alerts-rank{rank}.jsonl"


def ranks_in(folder: Path) -> list[int]:
    """Return the ranks whose readings are in a run folder, in order; 0 is always among them."""
    numbers = [path.stem.removeprefix("readings-rank") for path in folder.glob("readings-rank*.jsonl")]
    return sorted({0, *(int(number) for number in numbers if number.isdecimal() and len(number) < 9)})


def wait_for_ranks(folder: Path, patience: float = 2.0) -> None:
    """Wait until the other ranks of a training that has just ended have closed their logs, for so many seconds at most."""
    until = time.monotonic() + patience
    for rank in ranks_in(folder)[1:]:
        while _being_written(folder / readings_file(rank)) and time.monotonic() < until:
            time.sleep(0.01)


def _being_written(path: Path) -> bool:
    try:
        with open(path, "a", encoding="utf-8") as file:
            return not _lock(file)
    except OSError:
        return False


def read_info(folder: Path) -> dict[str, Any]:
    """Return ``run.json``.

    Raises:
        NotARunError: if the folder or the file is missing, unreadable or of a newer schema.
    """
    path = folder / INFO_FILE
    if not folder.is_dir():
        raise NotARunError(f"{folder} is not a folder. A run is the folder that Cockpit(run=...) wrote.")
    if not path.is_file():
        raise NotARunError(f"{folder} holds no run: it has no {INFO_FILE}. A run is the folder that Cockpit(run=...) wrote.")
    try:
        info = well_formed(json.loads(path.read_text(encoding="utf-8")))
        schema = info["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotARunError(f"{path} cannot be read as a run description ({type(error).__name__}: {error}).") from error
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise NotARunError(
            f"{path} has schema {schema!r}; this version of cockpit-lite reads up to {SCHEMA_VERSION}. "
            "Upgrade cockpit-lite to open it."
        )
    return info
