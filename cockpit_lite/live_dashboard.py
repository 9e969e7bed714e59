"""Dashboard: what the cockpit shows in a terminal, as wide and as high as that is.

A line a gauge: its course, how much of its limit is used up, and its verdict; above them progress, what measuring costs, and the
alerts with their causes. What does not fit goes: first the bars, then the courses, then the gauges at the end.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from cockpit_lite.alert import SEVERITIES
from cockpit_lite.plots.alpha import verdict as alpha_verdict
from cockpit_lite.plots.curvature_along_gradient import verdict as curvature_verdict
from cockpit_lite.plots.facts import described, measuring_share, recent, scalars, stability_factor
from cockpit_lite.plots.grad_norm import verdict as grad_norm_verdict
from cockpit_lite.plots.gradient_noise_scale import TOO_SMALL
from cockpit_lite.plots.gradient_noise_scale import verdict as noise_verdict
from cockpit_lite.plots.gradient_tests import INNER_LIMIT
from cockpit_lite.plots.gradient_tests import verdict as gradient_tests_verdict
from cockpit_lite.plots.hessian_trace import verdict as trace_verdict
from cockpit_lite.plots.learning_rate import verdict as learning_rate_verdict
from cockpit_lite.plots.loss import verdict as loss_verdict
from cockpit_lite.plots.max_eigenvalue import stability_limit
from cockpit_lite.plots.max_eigenvalue import verdict as eigenvalue_verdict
from cockpit_lite.plots.style import SYMBOLS
from cockpit_lite.plots.update_ratio import HIGHEST
from cockpit_lite.plots.update_ratio import verdict as update_ratio_verdict
from cockpit_lite.plots.update_size import verdict as update_size_verdict
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.report.text import count, format_seconds, format_share, one_line
from cockpit_lite.run import Run


def _rate_limit(run: Run) -> float | None:
    factor, eigenvalue = stability_factor(run), recent(run, "max_eigenvalue")
    return factor / eigenvalue if factor and eigenvalue and eigenvalue > 0 else None


def _batch_limit(run: Run) -> float | None:
    batch = recent(run, "batch_size")
    return None if batch is None else batch / TOO_SMALL


def _eigenvalue_limit(run: Run) -> float | None:
    limits = stability_limit(run)[1]
    return float(limits[-1]) if len(limits) else None


@dataclass(frozen=True)
class Gauge:
    """A line of the dashboard.

    Attributes:
        title: What it is called.
        reading: Which reading is drawn.
        judge: Says the verdict.
        limit: Returns where trouble begins, if that is known.
    """

    title: str
    reading: str
    judge: Callable[[Run], Verdict | None]
    limit: Callable[[Run], float | None] = lambda run: None


#: The most important ones first: a low terminal shows no others.
GAUGES = (
    Gauge("Loss", "loss", loss_verdict),
    Gauge("Learning rate", "learning_rate", learning_rate_verdict, _rate_limit),
    Gauge("Gradient norm", "grad_norm", grad_norm_verdict),
    Gauge("Update ratio", "update_ratio", update_ratio_verdict, lambda run: HIGHEST),
    Gauge("Noise scale", "gradient_noise_scale", noise_verdict, _batch_limit),
    Gauge("Gradient tests", "inner_product_test", gradient_tests_verdict, lambda run: INNER_LIMIT),
    Gauge("Largest eigenvalue", "max_eigenvalue", eigenvalue_verdict, _eigenvalue_limit),
    Gauge(
        "Gain and curvature",
        "taylor_curvature_term",
        curvature_verdict,
        lambda run: recent(run, "taylor_gradient_term"),
    ),
    Gauge("Alpha", "alpha", alpha_verdict),
    Gauge("Hessian trace", "hessian_trace", trace_verdict),
    Gauge("Way travelled", "distance", update_size_verdict),
)

#: Columns from which on there is room for bars, for courses, and for longer courses.
_FOR_BARS, _FOR_COURSES, _FOR_LONG_COURSES = 96, 64, 132
_BARS = "▁▂▃▄▅▆▇█"
_PARTS = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH = 8
_COLOURS = {"healthy": "green", "watch": "yellow", "trouble": "bold red", "neutral": "default"}
_SEVERITY_COLOURS = {"error": "bold red", "warning": "yellow", "note": "default"}
_MOST_ALERTS = 5


class Dashboard:
    """The whole view of a run as it stands, for any rich console.

    Args:
        run: The run.
        state: What to call its state.
        height: Lines at most; None: as many as the console has if it is a terminal, else any number.
    """

    def __init__(self, run: Run, state: str, height: int | None = None):
        self._run, self._state, self._height = run, state, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay the dashboard out for a console."""
        width = options.max_width
        height = self._height or (console.size.height - 1 if console.is_terminal else 1_000)
        low = height < 10  # there is no room for empty lines, and hardly any for the rest
        head = self._head(width)[: 1 if low else None]
        between = [] if low else [Text()]
        alerts = self._alerts(width, most=max(1, min(_MOST_ALERTS, (height - len(head) - 4) // 3)))
        alerts = alerts[: max(1, height - len(head) - 2 * len(between) - 1)]
        yield from head
        yield from between
        yield self._gauges(width, max(1, height - len(head) - len(alerts) - 2 * len(between)))
        yield from between
        yield from alerts

    def _head(self, width: int) -> list[Text]:
        run = self._run
        model = one_line(described(run.info.get("model")) or run.folder.name)
        colour = {"running": "green", "completed": "green"}.get(self._state, "yellow")
        first = Text.assemble((model, "bold"), "  ", (one_line(self._state), colour))
        if len(run.ranks) > 1:
            first.append(f"  rank {run.rank} of {len(run.ranks)}", "dim")
        facts = [one_line(described(run.info.get("optimizer")))]
        facts.append("no step yet" if run.last_step is None else f"step {run.last_step:,}")
        seconds = recent(run, "step_time", 20)
        if seconds is not None and seconds > 0:
            facts.append(f"{1 / seconds:,.1f} steps a second" if seconds < 1 else f"{format_seconds(seconds)} a step")
        facts.append(format_seconds(run.seconds))
        second = Text(" · ".join(filter(None, facts)), "dim")
        lines = [first, second]
        share, budget = measuring_share(run), run.info.get("budget")
        if share is not None:
            line = Text("measuring costs ", "dim")
            if isinstance(budget, float) and budget > 0:
                line.append(bar(share / budget), "yellow" if share > 1.1 * budget else "green")
                line.append(f" {format_share(share)} of the training, {format_share(budget)} are allowed", "dim")
            else:
                line.append(f"{format_share(share)} of the training", "dim")
            lines.append(line)
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return lines

    def _gauges(self, width: int, room: int) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, expand=False)
        with_courses, with_bars = width >= _FOR_COURSES, width >= _FOR_BARS
        length = 36 if width >= _FOR_LONG_COURSES else 20
        widths = [max(len(gauge.title) for gauge in GAUGES)] + [length] * with_courses + [_BAR_WIDTH + 2] * with_bars
        for column in widths:  # they stay as they are; the verdict has the rest
            table.add_column(no_wrap=True, min_width=column, max_width=column)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(10, width - sum(widths) - 2 * len(widths)))
        for gauge in GAUGES:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                verdict = gauge.judge(self._run)
                if verdict is None or table.row_count == room:
                    continue
                cells: list[Text] = [Text(gauge.title)]
                colour = _COLOURS[verdict.health]
                if with_courses:
                    cells.append(Text(sparkline(scalars(self._run, gauge.reading)[1], length), style="blue"))
                if with_bars:
                    value, limit = recent(self._run, gauge.reading), gauge.limit(self._run)
                    known = value is not None and limit is not None and limit > 0
                    cells.append(Text(bar(value / limit) if known else "", colour))  # type: ignore[operator]
            words = Text.assemble((SYMBOLS[verdict.health] or " ", colour), " ", one_line(verdict.text))
            table.add_row(*cells, words)
        return table

    def _alerts(self, width: int, most: int) -> list[Text]:
        alerts = sorted(self._run.alerts, key=lambda alert: (SEVERITIES.index(alert.severity), alert.step))
        if not alerts:
            return [Text("No alerts." if self._run.last_step is not None else "Nothing to look at yet.", style="dim")]
        lines = []
        for number, alert in enumerate(alerts[:most]):
            title = f"{alert.code} {alert.name}"
            lines.append(Text.assemble((one_line(title), _SEVERITY_COLOURS[alert.severity]), f" at step {alert.step:,}"))
            lines += _paragraph(alert.cause, width, most=2)
            if number == 0:  # the first cause: what to do about it
                lines += _paragraph(f"→ {alert.advice}", width, most=2)
        if len(alerts) > most:
            lines.append(Text(f"and {len(alerts) - most} more", style="dim"))
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        return lines


def _paragraph(text: str, width: int, most: int) -> Iterable[Text]:
    lines = textwrap.wrap(one_line(text), max(20, width - 2), max_lines=most, placeholder=" …")
    return [Text("  " + line) for line in lines]


def bar(share: float, width: int = _BAR_WIDTH) -> str:
    """Return how much of a limit is used up: full up to the mark, and an arrow beyond it.

    >>> bar(0.5, 4), bar(1.7, 4), bar(0.05, 4), bar(float("nan"), 4)
    ('██  │ ', '████│▶', '▎   │ ', '????│ ')
    """
    if np.isnan(share):
        return "?" * width + "│ "
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    filled = ("█" * (eighths // 8) + _PARTS[eighths % 8]).ljust(width)[:width]
    return f"{filled}│{'▶' if share > 1 else ' '}"


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
    words = [one_line(state), "no step yet" if run.last_step is None else f"step {run.last_step}"]
    for name in ("loss", "grad_norm", "update_ratio"):
        values = scalars(run, name)[1]
        if len(values):
            words.append(f"{name} {float(values[-1]):.3g}".replace("nan", "NaN").replace("inf", "Inf"))
    words.append(count(len(run.alerts), "alert"))
    return ", ".join(words)
