"""Cache: what was read from a long log, kept beside it as arrays, so that opening the run again takes no time.

    RUN/.cache/
      index.json          which reading is where, up to which byte of the log, and by what the log is known again
      <token>-steps.npy   whole numbers of all readings, one after the other
      <token>-values.npy  the other numbers

The arrays are mapped into memory, so that only what is looked at is read. Of a log that has grown since only the rest is read.
The cache holds nothing that is not in the log: it may be deleted at any time, and where it cannot be written, or does not fit
the log, the log is read. No pickle: opening a run never executes anything. Knows no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cockpit_lite.columns import Content
from cockpit_lite.run_log import decode, encode
from cockpit_lite.series import How, Series

FOLDER = ".cache"
#: A log that is shorter, in bytes, is read in a moment.
WORTH = 8 * 2**20

_INDEX = "index.json"
_VERSION = 1
_TOKEN = re.compile(r"[0-9a-f]{16}")
#: Bytes at the beginning of a log, and before the place up to which it was read, by which it is known again.
_SAMPLE = 2**16


def save(log: Path, content: Content) -> bool:
    """Write the cache of a log; return False, never raise, where that is not possible."""
    folder = log.parent / FOLDER
    token = secrets.token_hex(8)
    try:
        if folder.is_symlink():  # a run must not make its reader write elsewhere
            return False
        folder.mkdir(exist_ok=True)
        _write(folder, token, log, content)
        _remove(folder, log, keep=token)
    except (OSError, ValueError, MemoryError):  # read-only, full, gone; arrays of different shapes
        with contextlib.suppress(OSError):
            _remove_token(folder, token)
        return False
    return True


def load(log: Path) -> Content | None:
    """Return what is known of the beginning of a log, or None if that is nothing."""
    folder = log.parent / FOLDER
    try:
        index = json.loads((folder / _index_name(log)).read_text(encoding="utf-8"))
        if index["version"] != _VERSION or not _TOKEN.fullmatch(index["token"]) or not _is_of(log, index):
            return None
        whole, real = (
            np.load(folder / f"{index['token']}-{kind}.npy", mmap_mode="r", allow_pickle=False) for kind in ("steps", "values")
        )
        if (whole.dtype, real.dtype) != (np.dtype(np.int64), np.dtype(np.float64)) or whole.ndim != 1 or real.ndim != 1:
            return None
        return unpacked(index, whole, real)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, EOFError):
        return None  # whatever is wrong with it


def packed(content: Content) -> tuple[dict[str, Any], Places, Places]:
    """Return the content as an index that is JSON, and what it refers to: whole numbers, and others.

    Raises:
        ValueError: if a reading's values are arrays of different shapes.
    """
    whole, real = Places(), Places()
    index: dict[str, Any] = {"offset": content.offset, "series": {}, "how": {}}
    for name, series in content.series.items():
        steps, values = series.arrays()
        index["series"][name] = {"steps": whole.of(steps), "values": real.of(values), "shape": values.shape}
    for name, columns in content.how.items():
        index["how"][name] = {
            "steps": whole.of(columns.steps),
            "which": whole.of(columns.which),
            "kinds": columns.kinds,
            "numbers": {key: real.of(numbers) for key, numbers in columns.numbers.items()},
        }
    index |= {name: getattr(content, name) for name in ("not_measured", "seconds", "last_step", "unread")}
    return encode(index), whole, real


def unpacked(index: Mapping[str, Any], whole: np.ndarray, real: np.ndarray) -> Content:
    """Return what was packed.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError: if these do not belong together.
    """
    arrays = _Arrays(whole, real)
    series = {
        name: Series.of_arrays(arrays.whole(*entry["steps"]), arrays.real(*entry["values"]).reshape(entry["shape"]))
        for name, entry in index["series"].items()
    }
    how = {name: _how(entry, arrays) for name, entry in index["how"].items()}
    reasons = {str(name): str(reason) for name, reason in index["not_measured"].items()}
    last_step = None if index["last_step"] is None else int(index["last_step"])
    return Content(index["offset"], series, how, reasons, float(index["seconds"]), last_step, int(index["unread"]))


class _Arrays:
    """Pieces of the two long arrays; a piece that is not there is a ValueError."""

    def __init__(self, whole: np.ndarray, real: np.ndarray):
        self._whole, self._real = whole, real

    def whole(self, start: int, count: int) -> np.ndarray:
        return self._piece(self._whole, start, count)

    def real(self, start: int, count: int) -> np.ndarray:
        return self._piece(self._real, start, count)

    @staticmethod
    def _piece(array: np.ndarray, start: int, count: int) -> np.ndarray:
        if not 0 <= start <= start + count <= len(array):
            raise ValueError("the cache is shorter than its index says")
        return np.asarray(array[start : start + count])


class Places:
    """Where the pieces of a long array will be; the same array of whole numbers is written once."""

    def __init__(self) -> None:
        self.pieces: list[np.ndarray] = []
        self.count = 0
        self._known: dict[tuple[int, int, int], list[tuple[int, np.ndarray]]] = {}

    def of(self, array: np.ndarray) -> tuple[int, int]:
        """Return start and length of a piece."""
        array = array.reshape(-1)
        if not len(array):
            return 0, 0
        alike = self._known.setdefault((len(array), int(array[0]), int(array[-1])), []) if array.dtype == np.int64 else []
        for start, other in alike:  # readings are measured at the same steps
            if np.array_equal(array, other):
                return start, len(array)
        start = self.count
        alike.append((start, array))
        self.pieces.append(array)
        self.count += len(array)
        return start, len(array)

    def bytes(self) -> bytes:
        """Return the long array's bytes."""
        return b"".join(np.ascontiguousarray(piece).tobytes() for piece in self.pieces)

    def write(self, path: Path, kind: type) -> None:
        """Write the long array as a file that can be mapped; it is on the disk before an index names it."""
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": (self.count,)}
        with open(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for piece in self.pieces:
                np.ascontiguousarray(piece, kind).tofile(file)
            file.flush()
            os.fsync(file.fileno())


def _write(folder: Path, token: str, log: Path, content: Content) -> None:
    index, whole, real = packed(content)
    index |= {"version": _VERSION, "token": token, **_known_by(log, content.offset)}
    whole.write(folder / f"{token}-steps.npy", np.int64)
    real.write(folder / f"{token}-values.npy", np.float64)
    temporary = folder / f"{token}.part"
    temporary.write_text(json.dumps(index, allow_nan=False), encoding="utf-8")
    temporary.replace(folder / _index_name(log))


def _how(entry: Mapping[str, Any], arrays: _Arrays) -> How:
    kinds = [({key: decode(value) for key, value in fixed.items()}, list(names)) for fixed, names in entry["kinds"]]
    numbers = {name: arrays.real(*place) for name, place in entry["numbers"].items()}
    steps, which = arrays.whole(*entry["steps"]), arrays.whole(*entry["which"])
    if len(which) != len(steps) or any(len(column) != len(steps) for column in numbers.values()):
        raise ValueError("columns of different lengths")
    return How(steps, kinds, which, numbers)


def _index_name(log: Path) -> str:
    return _INDEX if log.name == "readings.jsonl" else f"{log.stem}-{_INDEX}"


def _known_by(log: Path, offset: int) -> dict[str, Any]:
    """Return by what a log is known again."""
    status = log.stat()
    return {"offset": offset, "size": status.st_size, "changed": status.st_mtime_ns, "marks": _marks(log, offset)}


def _is_of(log: Path, index: Mapping[str, Any]) -> bool:
    """Return whether the log is the one that was cached, grown or not."""
    status, offset = log.stat(), index["offset"]
    if not isinstance(offset, int) or not 0 < offset <= status.st_size:
        return False
    if status.st_size == index["size"]:
        return bool(status.st_mtime_ns == index["changed"])  # else it was edited
    return status.st_size > index["size"] and _marks(log, offset) == index["marks"]


def _marks(log: Path, offset: int) -> list[str]:
    with open(log, "rb") as file:
        found = []
        for start in (0, max(0, offset - _SAMPLE)):
            file.seek(start)
            found.append(hashlib.sha256(file.read(min(_SAMPLE, offset - start))).hexdigest())
        return found


def _remove(folder: Path, log: Path, keep: str) -> None:
    """Remove arrays that no index names any more."""
    named = {keep}
    for path in folder.glob(f"*{_INDEX}"):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            named.add(json.loads(path.read_text(encoding="utf-8"))["token"])
    for path in folder.glob("*.npy"):
        token = path.name.partition("-")[0]
        if token not in named and _TOKEN.fullmatch(token):
            _remove_token(folder, token)


def _remove_token(folder: Path, token: str) -> None:
    for name in _files(token):
        with contextlib.suppress(OSError):  # mapped by another reader, on Windows
            os.unlink(folder / name)


def _files(token: str) -> Iterable[str]:
    return (f"{token}-steps.npy", f"{token}-values.npy", f"{token}.part")
