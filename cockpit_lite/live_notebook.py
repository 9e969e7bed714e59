"""The cockpit in a notebook: one output cell with a picture that is replaced while the training runs.

The picture is drawn by another process; a thread of the notebook only passes the finished file on.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path

from cockpit_lite.errors import SetupError
from cockpit_lite.isolation import warn
from cockpit_lite.live import ProcessViewer, Viewer

#: Replaces the picture in the output cell by another PNG.
Update = Callable[[bytes], object]

_INTERVAL = 1.0
_WIDTH = 1100


class NotebookViewer(Viewer):
    """One output cell that shows ``cockpit.png`` and is updated when the file changes.

    Args:
        folder: The run's folder.
        open_cell: Makes the cell and returns what replaces its picture; IPython's by default.

    Raises:
        SetupError: if this is not a notebook.
    """

    def __init__(self, folder: Path, open_cell: Callable[[], Update] | None = None):
        self._update = (open_cell or _ipython_cell)()
        self._picture = folder / "cockpit.png"
        self._shown: int | None = None
        self._end = threading.Event()
        self._process = ProcessViewer(folder, "picture")
        self._thread = threading.Thread(target=self._pass_on, name="cockpit-lite-notebook", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show the last picture and stop."""
        self._end.set()
        self._thread.join(timeout=5.0)
        self._process.close()

    def _pass_on(self) -> None:
        try:
            last = False
            while not last:
                last = self._end.wait(_INTERVAL)
                self._show_if_new()
        except Exception as error:
            warn("The live view in the notebook stopped; training goes on.", error)

    def _show_if_new(self) -> None:
        try:
            changed = self._picture.stat().st_mtime_ns
        except FileNotFoundError:  # nothing drawn yet
            return
        if changed != self._shown:
            self._update(self._picture.read_bytes())
            self._shown = changed


def _ipython_cell() -> Update:
    try:
        ipython = importlib.import_module("IPython.display")  # no dependency of ours: where there is a notebook, it is there
    except ImportError:
        cell = None
    else:
        cell = ipython.display({"text/plain": "The cockpit appears with the first steps."}, raw=True, display_id=True)
    if cell is None:
        raise SetupError("live='notebook' needs a notebook; elsewhere use live='window' or live='terminal'.")
    return lambda png: cell.update(ipython.Image(data=png, format="png", width=_WIDTH))
