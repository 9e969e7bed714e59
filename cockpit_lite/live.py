"""Watching a run while it trains: in a window, a browser or a picture (another process), in the terminal, in a notebook.

Nothing here may slow down or break the training: windows and pictures are drawn in a process of their own that reads the run's
folder; closing or killing it goes unnoticed by the training, and whatever fails here is said once and then left alone.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cockpit_lite.errors import NotARunError, SetupError
from cockpit_lite.isolation import warn

if TYPE_CHECKING:
    from cockpit_lite.plots.follow import Follower

MODES = ("window", "terminal", "notebook")

#: Of ``watch --serve``.
DEFAULT_PORT = 8988
#: How much later than others a viewer gets a processor that it shares.
_NICE = 10

#: Windows that outlive their Cockpit are kept, so that they can be waited for once they have been closed.
_left_open: list[subprocess.Popen[bytes]] = []


class Viewer:
    """Something that shows the run while it trains."""

    def close(self) -> None:
        """The run has ended. A window stays open for the user, everything else finishes. Never raises."""
        raise NotImplementedError


def start_viewer(folder: str | os.PathLike[str], mode: str) -> Viewer | None:
    """Start to show a run that this process is about to write; return None, after a warning, where that fails.

    Args:
        folder: The run's folder, ``run.json`` written.
        mode: One of :data:`MODES`.

    Raises:
        SetupError: if there is no such mode; nothing else, ever.
    """
    if mode not in MODES:
        raise SetupError(f"live= takes {', '.join(map(repr, MODES))}, not {mode!r}.")
    folder = Path(folder)
    try:
        if mode == "terminal":
            from cockpit_lite.live_terminal import TerminalViewer

            return TerminalViewer(folder)
        if mode == "notebook":
            from cockpit_lite.live_notebook import NotebookViewer

            return NotebookViewer(folder)
        return ProcessViewer(folder)
    except Exception as error:
        warn(f"The run in {folder} cannot be shown live (live={mode!r}); training goes on without.", error)
        return None


def make_way() -> None:
    """Let a training on the same machine come first; for a process that does nothing but show it."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):
            os.nice(_NICE)


def watch(
    folder: str | os.PathLike[str],
    mode: str | None = "window",
    pid: int | None = None,
    *,
    rank: int = 0,
    port: int = DEFAULT_PORT,
) -> None:
    """Follow a run until it has ended and the window is closed: ``cockpit-lite watch``.

    Args:
        folder: The run.
        mode: ``"window"``, ``"terminal"``, ``"serve"`` (in a browser), ``"picture"`` (keep ``cockpit.png`` up to date); None: a
            window if there can be one.
        pid: Process that trains; when it has gone, the run is taken to have ended.
        rank: Whose readings, where several processes train together.
        port: For ``"serve"``; 0: any that is free.

    Raises:
        NotARunError: if ``folder`` holds no run, or none of that rank.
        SetupError: if there is no such mode, or a package that it needs is not there.
    """
    from cockpit_lite.plots.follow import Follower

    if mode not in (None, "window", "terminal", "serve", "picture"):
        raise SetupError(f"A run can be watched in a 'window', the 'terminal', by 'serve' or as a 'picture', not in {mode!r}.")
    follower = Follower(folder, pid, rank=rank)
    if rank not in follower.run.ranks:
        raise NotARunError(f"{folder} has no readings of rank {rank}; there are those of {follower.run.ranks}.")
    with contextlib.suppress(KeyboardInterrupt):  # the usual way to leave, nothing to be shown a traceback for
        if mode == "terminal":
            from cockpit_lite.live_terminal import watch_terminal

            watch_terminal(follower)
        elif mode == "serve":
            _serve(follower, port)
        else:
            _watch_window(follower, mode, leave_the_end=pid is not None)


def _serve(follower: Follower, port: int) -> None:
    try:
        from cockpit_lite.live_browser import serve
    except ImportError as error:
        raise SetupError('watch --serve needs tornado: pip install "cockpit-lite[serve]".') from error
    serve(follower, port)


def _watch_window(follower: Follower, mode: str | None, leave_the_end: bool) -> None:
    from cockpit_lite.plots.window import NoWindowError, keep_picture, show_window

    if mode != "picture":
        try:
            show_window(follower)
            return
        except NoWindowError as reason:
            from rich.console import Console

            if mode is None:
                from cockpit_lite.live_terminal import watch_terminal

                watch_terminal(follower)
                return
            message = f"No window, because {reason}. {follower.folder / 'cockpit.png'} is kept up to date instead."
            Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
    keep_picture(follower, leave_the_end=leave_the_end)


class ProcessViewer(Viewer):
    """A window (without a display: a picture) that :func:`watch` draws in a process of its own.

    Args:
        folder: The run's folder.
        mode: ``"window"`` or ``"picture"``.
    """

    def __init__(self, folder: Path, mode: str = "window"):
        from cockpit_lite.plots.window import why_no_window

        _left_open[:] = [process for process in _left_open if process.poll() is None]
        reason = why_no_window() if mode == "window" else None
        if reason is not None:
            warn(f"No window, because {reason}. {folder / 'cockpit.png'} is kept up to date instead.")
        # What it says goes to a file, not to a pipe nobody reads nor to the user's terminal, which it may outlive.
        handle, name = tempfile.mkstemp(prefix="cockpit-lite-viewer-", suffix=".log")
        self._log = Path(name)
        self._said = reason is not None
        program = "import sys; from cockpit_lite.live import make_way, watch; make_way(); "
        program += "watch(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
        command = [sys.executable, "-c", program, str(folder), mode, str(os.getpid())]
        options: dict[str, Any] = {"start_new_session": True}  # Ctrl-C in the terminal is meant for the training
        if sys.platform == "win32":
            options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, env=_environment(), close_fds=True, **options
            )
        finally:
            os.close(handle)

    @property
    def pid(self) -> int:
        """The process that draws."""
        return self._process.pid

    def close(self) -> None:
        """Leave the window to the user; say what the viewer had to say if it failed."""
        try:
            code = self._process.poll()
            words = self._log.read_text(encoding="utf-8", errors="replace").strip()
            if code is None:
                _left_open.append(self._process)
            if words and not self._said and (code or "No window" in words):
                warn(f"The live view: {words.splitlines()[-1]}")
            with contextlib.suppress(OSError):  # in use, on Windows
                self._log.unlink()
        except Exception as error:
            warn("The live view could not be closed.", error)


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    if environment.get("MPLBACKEND", "").startswith("module:"):  # a notebook's own backend, which opens no window
        del environment["MPLBACKEND"]
    return environment
