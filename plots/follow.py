"""Follower: a run that may still be growing, and whether there is more to come."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cockpit_lite.errors import NotARunError
from cockpit_lite.plots.facts import is_running
from cockpit_lite.run import Run

#: Seconds without a new line after which the viewer says so; a slow step or a long validation takes less.
_SILENCE_WORTH_SAYING = 120.0


class Follower:
    """Reads what a training appends, and notices when it has ended, crashed or fallen silent.

    Args:
        folder: The run.
        pid: The process that trains, if it is known and on this machine: when it has gone, nothing more will come.
        clock: Seconds, monotonic; replaced in tests.
        rank: Whose readings, where several processes train together.

    Attributes:
        run: The run as last read.

    Raises:
        NotARunError: if the folder holds no run.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        pid: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        rank: int = 0,
    ):
        self.run = Run(folder, rank)
        self.folder = Path(folder)
        self._pid = pid
        self._clock = clock
        self._heard = clock()
        self._gone = False

    def refresh(self) -> bool:
        """Read what is new; return whether anything is. A folder that was deleted ends the run, it raises nothing."""
        # Asked before reading: what the process wrote last is then read too.
        writer_gone = self._pid is not None and not is_alive(self._pid)
        try:
            changed = self.run.refresh()
        except NotARunError:
            self._gone = True
            return False
        if changed:
            self._heard = self._clock()
            if self._gone and writer_gone:  # more came after it had gone: another process has resumed the run
                self._pid, writer_gone = None, False
        self._gone = writer_gone
        return changed

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come."""
        return self._gone or not is_running(self.run)

    @property
    def state(self) -> str:
        """What to call the run's state: as it said itself, or what can be concluded from its silence."""
        if not is_running(self.run):
            return str(self.run.info["status"])
        if self._gone:
            return "stopped without an end"
        silence = self._clock() - self._heard
        return f"running, silent for {round(silence / 60)} min" if silence > _SILENCE_WORTH_SAYING else "running"


def is_alive(pid: int) -> bool:
    """Return whether a process of this machine exists and has not ended."""
    if sys.platform == "win32":  # os.kill(pid, 0) would end the process there
        import ctypes

        synchronize, still_running = 0x00100000, 0x102
        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(synchronize, False, pid)
        if not handle:
            return False
        alive = kernel.WaitForSingleObject(handle, 0) == still_running
        kernel.CloseHandle(handle)
        return bool(alive)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    try:  # an ended process that nobody has waited for still answers
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True
