"""Mirror: what a long log says, as arrays, written beside it as it grows: text takes ten times as long to read.

    RUN/.cache/readings-<offset>.mirror    one for each time that a training began or was resumed; pieces, one behind the other

Each piece stands for some lines of the log, and is used only if the checksum of these is that of the lines in the log: the log
stays the truth. So the mirror may be deleted at any time; whoever edits the log, or finds half a piece behind a crash, has the
lines themselves read. What comes before :data:`BEGINNING` is in no mirror. No pickle. Knows no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cockpit_lite import run_cache
from cockpit_lite.columns import Columns, Content
from cockpit_lite.row_definition import Definition, define
from cockpit_lite.run_log import ReadingsReader, parsed

#: A log that is shorter, in bytes, is read in a moment.
BEGINNING = 2**21
#: Bytes of the log that a piece stands for, about.
PIECE = 2**19

_MAGIC = b"cockpit1"
#: Magic; first and last byte of the log, checksum of what is between them; bytes of index and both arrays, checksum of these.
_HEAD = struct.Struct("<8sQQIQQQI")
_SUFFIX = ".mirror"


class Mirror:
    """Writes the mirror of a log that is being written; never raises.

    Args:
        log: The log, as long as it is when the first of what is handed to :meth:`take` is appended.
    """

    def __init__(self, log: Path):
        self._log = log
        self._end = self._start = log.stat().st_size
        self._texts: list[str] = []
        self._layouts: dict[int, Definition] = {}
        self._reader = ReadingsReader(log, self._layouts)
        self._file: FileIO | None = None
        self._failed = False

    def take(self, text: str) -> None:
        """Take lines that were appended to the log."""
        if self._failed or not text:
            return
        self._end += len(text)  # the log is ASCII
        if self._end < BEGINNING:
            self._start = self._end
            for line in text.splitlines() if '{"layout"' in text else ():
                if line.startswith('{"layout"'):
                    define(parsed(line.encode()) or {}, self._layouts)
            return
        self._texts.append(text)
        if self._end - self._start >= PIECE:
            self._write()

    def close(self) -> None:
        """Write what is left; nothing more is taken."""
        if self._texts and not self._failed:
            self._write()
        self.abandon()

    def abandon(self) -> None:
        """Close the file and leave it at that."""
        self._failed = True
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _write(self) -> None:
        text = "".join(self._texts).encode()
        columns = Columns(forget_reasons=False)
        for line in self._reader.whole_lines(filter(None, map(parsed, text.splitlines()))):
            columns.add(line)
        try:
            if columns.unread or self._reader.bad_lines:
                raise ValueError("the reader shall count them")
            index, whole, real = run_cache.packed(columns.content(self._end))
            parts = [json.dumps(index, allow_nan=False).encode(), whole.bytes(), real.bytes()]
            body = b"".join(parts)
            head = _HEAD.pack(_MAGIC, self._start, self._end, zlib.crc32(text), *map(len, parts), zlib.crc32(body))
            if self._file is None:
                self._file = self._open()
            self._file.write(head + body)
        except ValueError:  # or a reading has arrays of different shapes
            self._reader.bad_lines = 0
        except (OSError, MemoryError):  # read-only, full, gone
            self.abandon()
        self._start = self._end
        self._texts.clear()

    def _open(self) -> FileIO:
        folder = self._log.parent / run_cache.FOLDER
        if folder.is_symlink():  # a run must not make its writer write elsewhere
            raise OSError("the folder is somewhere else")
        folder.mkdir(exist_ok=True)
        path = folder / f"{self._log.stem}-{self._start}{_SUFFIX}"
        path.unlink(missing_ok=True)
        return open(path, "xb", buffering=0)


def pieces(log: Path, behind: int) -> Iterator[tuple[int, Content]]:
    """Yield for every piece that fits the log where its first line begins, and what it says up to its ``offset``.

    Args:
        log: The log.
        behind: A byte of it; pieces that end before it are passed over.
    """
    for path in _files(log):
        try:
            with open(path, "rb") as file, open(log, "rb") as text:
                yield from _read(file, text, path.stat().st_size, log.stat().st_size, behind)
        except OSError:
            continue


def remove(log: Path) -> None:
    """Remove the mirror of a log: what it says is known in another way."""
    for path in _files(log):
        with contextlib.suppress(OSError):
            path.unlink()


def _files(log: Path) -> list[Path]:
    found = {}
    for path in (log.parent / run_cache.FOLDER).glob(f"{log.stem}-*{_SUFFIX}"):
        start = path.stem.removeprefix(f"{log.stem}-")
        if start.isdecimal() and len(start) < 19 and path.is_file():
            found[int(start)] = path
    return [found[start] for start in sorted(found)]


def _read(file: BinaryIO, text: BinaryIO, size: int, log_size: int, behind: int) -> Iterator[tuple[int, Content]]:
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        magic, start, end, checksum, *lengths, body_checksum = _HEAD.unpack(head)
        if magic != _MAGIC or start >= end or end > log_size or sum(lengths) > size:
            return
        if end <= behind:
            file.seek(sum(lengths), os.SEEK_CUR)
            continue
        body = file.read(sum(lengths))
        text.seek(start)
        if len(body) < sum(lengths):
            return
        if zlib.crc32(body) != body_checksum or zlib.crc32(text.read(end - start)) != checksum:
            continue
        try:
            index = json.loads(body[: lengths[0]])
            whole = np.frombuffer(body, np.int64, lengths[1] // 8, lengths[0])
            real = np.frombuffer(body, np.float64, lengths[2] // 8, lengths[0] + lengths[1])
            content = run_cache.unpacked(index, whole, real)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
        content.offset = end
        yield start, content
