"""The cockpit in a window of its own process, following a run; or, without a display, as a picture that is kept up to date.

The only module of the package that uses pyplot. It never calls ``plt.pause``, which would take the focus from whatever the user
types into at every refresh.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from typing import Any

import matplotlib

from cockpit_lite.plots.follow import Follower
from cockpit_lite.plots.pace import Pace
from cockpit_lite.plots.page import PAGE_SIZE, Page, replace_file
from cockpit_lite.plots.painter import Painter

#: matplotlib backend -> the module it cannot do without.
_BACKENDS = {
    "qtagg": ("PyQt6", "PySide6", "PyQt5", "PySide2"),
    "gtk4agg": ("gi",),
    "gtk3agg": ("gi",),
    "tkagg": ("tkinter",),
    "wxagg": ("wx",),
}

#: Seconds between two looks at the run, at least and at most.
_INTERVALS = (1.0, 3.0)
_PICTURE_INTERVALS = (2.0, 10.0)
#: After the run has ended: it may be resumed.
_IDLE_INTERVAL = 5.0
#: Where gauges are still to be brought up to date, after the window has looked for clicks.
_SOON = 0.05


class NoWindowError(Exception):
    """No window can be opened; the message completes "no window, because ..."."""


def why_no_window() -> str | None:
    """Return why a window cannot be opened as far as that can be known without trying, or None; cheap, imports no toolkit."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display"
    if sys.platform != "darwin" and not any(
        importlib.util.find_spec(module) for modules in _BACKENDS.values() for module in modules
    ):
        return "no GUI toolkit is installed (PyQt6, PySide6 or tkinter)"
    return None


def show_window(follower: Follower, theme: str = "light") -> None:
    """Show the run until the user closes the window; it stays open after the run has ended.

    Raises:
        NoWindowError: if there is no display or no GUI toolkit.
    """
    figure = _open_figure(f"cockpit-lite: {follower.folder.name}")
    canvas = figure.canvas
    closed: list[bool] = []
    canvas.mpl_connect("close_event", lambda _event: closed.append(True))
    painter = Painter(Page(theme, figure=figure))
    blits = "macosx" not in type(canvas).__module__  # there it says that it can, and shows nothing
    shown: str | None = None
    pace = Pace(*_INTERVALS)
    while not closed:
        with pace:
            if follower.refresh() or shown != follower.state or painter.waiting:
                shown = follower.state
                if painter.refresh(follower.run, shown):
                    if blits:
                        canvas.blit(figure.bbox)
                    else:
                        canvas.draw_idle()
                canvas.flush_events()
        if not closed:
            canvas.start_event_loop(_SOON if painter.waiting else _IDLE_INTERVAL if follower.ended else pace.rest())


def keep_picture(follower: Follower, theme: str = "light", leave_the_end: bool = False) -> None:
    """Rewrite ``cockpit.png`` in the run's folder until the run ends.

    Args:
        follower: The run.
        theme: ``"light"`` or ``"dark"``.
        leave_the_end: Draw nothing any more once the run said that it has ended, since the training draws its own last picture.
    """
    painter = Painter(Page(theme))
    target = follower.folder / "cockpit.png"
    drawn: str | None = None
    pace = Pace(*_PICTURE_INTERVALS)
    while True:
        with pace:
            changed = follower.refresh()
            ended_well = follower.ended and "stopped" not in follower.state
            if (changed or drawn != follower.state) and not (ended_well and leave_the_end):
                painter.refresh(follower.run, follower.state, budget=None)
                drawn = follower.state
                try:
                    replace_file(target, painter.png())
                except FileNotFoundError:  # the folder was deleted
                    return
        if follower.ended:
            return
        time.sleep(pace.rest())


def _open_figure(title: str) -> Any:
    """Open a window with the first backend that works, without raising it above what the user looks at."""
    problem = why_no_window()
    if problem is not None:
        raise NoWindowError(problem)
    import matplotlib.pyplot as plt

    chosen = os.environ.get("MPLBACKEND", "").lower()
    candidates = [chosen] if chosen in (*_BACKENDS, "macosx") else []
    candidates += ["macosx"] if sys.platform == "darwin" else []
    candidates += [name for name, modules in _BACKENDS.items() if any(importlib.util.find_spec(module) for module in modules)]
    reasons = []
    for name in dict.fromkeys(candidates):
        try:
            plt.switch_backend(name)
            figure = plt.figure(num=title, figsize=PAGE_SIZE, dpi=100)
            break
        except Exception as error:  # every toolkit has its own way to say that it cannot
            unreachable = "headless" in str(error)  # matplotlib's word for a display that does not answer
            reasons.append(f"the display {os.environ.get('DISPLAY', '')} does not answer" if unreachable else f"{name}: {error}")
    else:
        raise NoWindowError("; ".join(dict.fromkeys(reasons)) or "no GUI toolkit is installed (PyQt6, PySide6 or tkinter)")
    matplotlib.rcParams["figure.raise_window"] = False
    manager: Any = figure.canvas.manager
    manager.show()
    figure.canvas.flush_events()  # only now a toolkit knows the screen's scale, and with it the figure's dpi
    screen = _screen_size(getattr(manager, "window", None))
    if screen is not None:  # leave room for title bar, toolbar and panels of the desktop
        width, height = (size / figure.dpi for size in screen)
        figure.set_size_inches(min(PAGE_SIZE[0], 0.98 * width), min(PAGE_SIZE[1], 0.86 * height), forward=True)
    return figure


def _screen_size(window: Any) -> tuple[float, float] | None:
    """Return the size of the screen in the toolkit's pixels, where it can be asked."""
    if hasattr(window, "winfo_screenwidth"):
        return float(window.winfo_screenwidth()), float(window.winfo_screenheight())
    if hasattr(window, "screen"):
        geometry = window.screen().availableGeometry()
        return float(geometry.width()), float(geometry.height())
    return None
