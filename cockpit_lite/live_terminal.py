"""The cockpit in a terminal: a dashboard, or plain lines in a pipe. Works over ssh and in tmux."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from cockpit_lite.isolation import warn
from cockpit_lite.live import Viewer
from cockpit_lite.live_dashboard import Dashboard, status_line
from cockpit_lite.plots.follow import Follower
from cockpit_lite.plots.pace import Pace
from cockpit_lite.report.text import one_line

_INTERVAL = 1.0
#: At most, where drawing takes long: the dashboard below a training shares its interpreter.
_LONGEST = 3.0


def watch_terminal(follower: Follower, console: Console | None = None) -> None:
    """Show the run until it ends; in a pipe, a plain line whenever there is something new, and every alert."""
    console = console or Console()
    if not console.is_terminal:
        told = 0
        while True:
            if follower.refresh() or follower.ended:
                told = _tell(follower, console, told)
            if follower.ended:
                return
            time.sleep(5 * _INTERVAL)
    pace = Pace(_INTERVAL, _LONGEST)
    with Live(Dashboard(follower.run, follower.state), console=console, auto_refresh=False) as live:
        while True:
            with pace:
                follower.refresh()
                live.update(Dashboard(follower.run, follower.state), refresh=True)
            if follower.ended:
                return
            time.sleep(pace.rest())


def _tell(follower: Follower, console: Console, told: int) -> int:
    """Print the alerts that were not told yet and a line about the run; return how many alerts have now been told."""
    alerts = follower.run.alerts
    lines = [one_line(f"{alert.severity}: {alert}") for alert in alerts[told:]]
    for line in (*lines, status_line(follower.run, follower.state)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return len(alerts)


class TerminalViewer(Viewer):
    """The dashboard below the training's own output, refreshed by a thread that only reads the run's files."""

    def __init__(self, folder: Path, console: Console | None = None):
        self._follower = Follower(folder)
        self._console = console or Console()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._show, name="cockpit-lite-terminal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Draw the last state and stop."""
        self._end.set()
        self._thread.join(timeout=5.0)

    def _show(self) -> None:
        try:
            if self._console.is_terminal:
                self._draw()
            else:
                self._list()
        except Exception as error:
            warn("The live view in the terminal stopped; training goes on.", error)

    def _draw(self) -> None:
        follower, pace = self._follower, Pace(_INTERVAL, _LONGEST)
        with Live(Dashboard(follower.run, follower.state), console=self._console, auto_refresh=False) as live:
            while True:
                last = self._end.wait(pace.rest())
                with pace:
                    if follower.refresh() or last:
                        live.update(Dashboard(follower.run, follower.state), refresh=True)
                if last:
                    return

    def _list(self) -> None:
        last = False
        while not last:
            last = self._end.wait(10 * _INTERVAL)
            if self._follower.refresh() or last:
                _tell(self._follower, self._console, len(self._follower.run.alerts))  # the training itself tells the alerts
