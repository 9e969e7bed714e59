"""The cockpit in a terminal: a line per reading with its course, last value and verdict, and the alerts. Works over ssh."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cockpit_lite.alert import SEVERITIES
from cockpit_lite.isolation import warn
from cockpit_lite.live import Viewer
from cockpit_lite.plots.curvature_along_gradient import verdict as curvature_verdict
from cockpit_lite.plots.facts import cost, described, recent, scalars
from cockpit_lite.plots.follow import Follower
from cockpit_lite.plots.grad_norm import verdict as grad_norm_verdict
from cockpit_lite.plots.gradient_noise_scale import verdict as noise_verdict
from cockpit_lite.plots.gradient_tests import verdict as gradient_tests_verdict
from cockpit_lite.plots.hessian_trace import verdict as trace_verdict
from cockpit_lite.plots.learning_rate import verdict as learning_rate_verdict
from cockpit_lite.plots.loss import verdict as loss_verdict
from cockpit_lite.plots.max_eigenvalue import verdict as eigenvalue_verdict
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.style import SYMBOLS
from cockpit_lite.plots.update_ratio import verdict as update_ratio_verdict
from cockpit_lite.plots.update_size import verdict as update_size_verdict
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run

#: What is called how, which reading is drawn, who judges it.
_ROWS: tuple[tuple[str, str, Callable[[Run], Verdict | None]], ...] = (
    ("Loss", "loss", loss_verdict),
    ("Learning rate", "learning_rate", learning_rate_verdict),
    ("Update ratio", "update_ratio", update_ratio_verdict),
    ("Way travelled", "distance", update_size_verdict),
    ("Gradient norm", "grad_norm", grad_norm_verdict),
    ("Gradient tests", "inner_product_test", gradient_tests_verdict),
    ("Noise scale", "gradient_noise_scale", noise_verdict),
    ("Gain and curvature", "taylor_curvature_term", curvature_verdict),
    ("Largest eigenvalue", "max_eigenvalue", eigenvalue_verdict),
    ("Hessian trace", "hessian_trace", trace_verdict),
)
_BARS = "▁▂▃▄▅▆▇█"
_COLOURS = {"healthy": "green", "watch": "yellow", "trouble": "bold red", "neutral": "default"}
_SEVERITY_COLOURS = {"error": "bold red", "warning": "yellow", "note": "default"}
_MOST_ALERTS = 5
_INTERVAL = 1.0


def dashboard(run: Run, state: str) -> RenderableType:
    """Return the whole view of a run as it stands."""
    steps = "no step yet" if run.last_step is None else f"step {run.last_step:,}"
    facts = [described(run.info.get("optimizer")), state, steps, f"{run.seconds:.0f} s"]
    share = recent(run, "overhead")
    if share is not None:
        facts.append(cost(share))
    header = Text.assemble(
        (described(run.info.get("model")) or run.folder.name, "bold"), "  ", (" · ".join(filter(None, facts)), "dim")
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for title, name, judge in _ROWS:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            verdict, course = judge(run), sparkline(scalars(run, name)[1])
        if verdict is not None:
            colour = _COLOURS[verdict.health]
            words = Text.assemble((SYMBOLS[verdict.health] or " ", colour), " ", verdict.text)
            table.add_row(title, Text(course, style="blue"), words)
    return Group(header, Text(), table, Text(), _alerts(run))


def sparkline(values: np.ndarray, width: int = 28) -> str:
    """Return the course of a series in one line: the mean of each part, ``×`` where a part is NaN or Inf.

    A positive series that spans more than a factor of twenty is drawn by its logarithm.

    >>> sparkline(np.array([1.0, 2.0, 3.0, np.nan]), width=4)
    '▁▅█×'
    """
    if not len(values):
        return ""
    parts = np.array_split(values, min(width, len(values)))
    means = np.array([part.mean() if np.isfinite(part).all() else np.nan for part in parts])
    finite = means[np.isfinite(means)]
    if not len(finite):
        return "×" * len(means)
    if finite.min() > 0 and finite.max() > 20 * finite.min():
        means, finite = np.log(means), np.log(finite)
    span = finite.max() - finite.min() or 1.0
    heights = (means - finite.min()) / span * (len(_BARS) - 1)
    return "".join("×" if np.isnan(height) else _BARS[round(float(height))] for height in heights)


def status_line(run: Run, state: str) -> str:
    """Return one plain line, for where no dashboard can be drawn."""
    words = [state, "no step yet" if run.last_step is None else f"step {run.last_step}"]
    for name in ("loss", "grad_norm", "update_ratio"):
        values = scalars(run, name)[1]
        if len(values):
            words.append(f"{name} {short(float(values[-1]))}")
    words.append(f"{len(run.alerts)} alert{'' if len(run.alerts) == 1 else 's'}")
    return ", ".join(words)


def watch_terminal(follower: Follower, console: Console | None = None) -> None:
    """Show the run until it ends; in a pipe, a plain line whenever there is something new."""
    console = console or Console()
    if not console.is_terminal:
        while True:
            if follower.refresh() or follower.ended:
                console.print(status_line(follower.run, follower.state), markup=False, highlight=False, soft_wrap=True)
            if follower.ended:
                return
            time.sleep(5 * _INTERVAL)
    with Live(dashboard(follower.run, follower.state), console=console, auto_refresh=False) as live:
        while True:
            follower.refresh()
            live.update(dashboard(follower.run, follower.state), refresh=True)
            if follower.ended:
                return
            time.sleep(_INTERVAL)


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
        follower = self._follower
        with Live(dashboard(follower.run, follower.state), console=self._console, auto_refresh=False) as live:
            while True:
                last = self._end.wait(_INTERVAL)
                if follower.refresh() or last:
                    live.update(dashboard(follower.run, follower.state), refresh=True)
                if last:
                    return

    def _list(self) -> None:
        last = False
        while not last:
            last = self._end.wait(10 * _INTERVAL)
            if self._follower.refresh() or last:
                self._console.print(
                    status_line(self._follower.run, self._follower.state), markup=False, highlight=False, soft_wrap=True
                )


def _alerts(run: Run) -> Text:
    if not run.alerts:
        return Text("No alerts.", style="dim")
    alerts = sorted(run.alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.step))
    lines = [
        Text.assemble((f"{alert.code} {alert.name}", _SEVERITY_COLOURS[alert.severity]), f" at step {alert.step}: {alert.cause}")
        for alert in alerts[:_MOST_ALERTS]
    ]
    if len(alerts) > _MOST_ALERTS:
        lines.append(Text(f"and {len(alerts) - _MOST_ALERTS} more", style="dim"))
    return Text("\n").join(lines)
