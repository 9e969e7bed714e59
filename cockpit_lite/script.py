"""Script: runs a training script that knows nothing of the cockpit, and watches what it trains."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from cockpit_lite.attach import Attachment
from cockpit_lite.cockpit import Cockpit
from cockpit_lite.errors import SetupError
from cockpit_lite.isolation import warn

Failure = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
_NO_FAILURE: Failure = (None, None, None)


class Watch:
    """Opens a cockpit for every model that is trained inside its ``with`` block.

    Models that are trained at the same time (the two of a GAN) have a cockpit each. Where a script trains one model after the
    other, the cockpits of the earlier ones end when the next one begins.

    Args:
        run: Folder of the run; further runs of the script are numbered. Default: new folders under ``runs/``.
        settings: Handed to every :class:`~cockpit_lite.cockpit.Cockpit`.

    Attributes:
        folders: The run folders so far.
    """

    def __init__(self, run: str | os.PathLike[str] | None = None, **settings: Any):
        self.folders: list[Path] = []
        self._run = run
        self._settings = settings
        self._open: list[Cockpit] = []
        self._attachment = Attachment(self._opened, self._end)

    def __enter__(self) -> Watch:
        self._attachment.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._attachment.stop()
        ended_well = isinstance(error, SystemExit) and not error.code  # sys.exit() is a script's usual way to end
        self._end(_NO_FAILURE if ended_well else (kind, error, trace))

    def _opened(self, model: nn.Module, optimizers: list[Optimizer]) -> None:
        try:
            cockpit = Cockpit(model, optimizers, run=self._next_folder(), **self._settings)
            cockpit.__enter__()
        except Exception as error:
            warn(f"{type(model).__name__} could not be watched; the script goes on.", error)
            return
        self._open.append(cockpit)
        self.folders.append(cockpit.folder)

    def _next_folder(self) -> Path | None:
        if self._run is None:
            return None
        return Path(self._run) if not self.folders else Path(f"{os.fspath(self._run)}-{len(self.folders) + 1}")

    def _end(self, failure: Failure = _NO_FAILURE) -> None:
        for cockpit in self._open:
            cockpit.__exit__(*failure)
        self._open = []


def run_script(script: str, arguments: Sequence[str], watch: Watch, *, is_module: bool = False) -> int:
    """Run a script as ``python script arguments`` does, watched, and return its exit code; a failure's traceback is printed.

    Args:
        script: Path of the script, or the name of a module.
        arguments: What it finds in ``sys.argv[1:]``.
        watch: Watches it.
        is_module: Run a module, as ``python -m`` does.

    Raises:
        SetupError: if there is no such script.
        KeyboardInterrupt: if it was interrupted.
    """
    if not is_module and not Path(script).is_file():
        raise SetupError(f"there is no script {script!r}. The order is: cockpit-lite run [options] SCRIPT [its arguments].")
    saved = sys.argv, sys.path[:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(script).resolve().parent))
    try:
        with watch:
            if is_module:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except Exception as error:
        _print_failure(error)
        return 1
    finally:
        sys.argv, sys.path[:] = saved
    return 0


def _print_failure(error: Exception) -> None:
    """Print the traceback that the script has on its own: without our frames and those of runpy around it."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_code.co_filename in (__file__, runpy.__file__, "<frozen runpy>"):
        place = place.tb_next
    traceback.print_exception(type(error), error, place or error.__traceback__)
