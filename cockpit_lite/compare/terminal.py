"""The comparison in a terminal; plain text where the output is none.

All text is put into ``rich.text.Text``, never into markup, so that a module called ``[red]`` keeps its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cockpit_lite.report.terminal import STYLES
from cockpit_lite.report.text import count, format_share, format_value, one_line

if TYPE_CHECKING:
    from cockpit_lite.compare.findings import Found
    from cockpit_lite.compare.model import Comparison
    from cockpit_lite.compare.readings import SharedReading

#: The page has them all.
_MOST_READINGS = 20


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the comparison; default: to standard output."""
    console = console or Console()
    console.print(Text(one_line(comparison.summary), style="bold"))
    for outcome in comparison.outcomes:
        console.print(Text(one_line(f"{outcome[:1].upper()}{outcome[1:]}.")))
    for one in comparison.left_out:
        console.print(Text(f"Left out: {one_line(one.reason)}", style=STYLES["warning"]))
    console.print(_runs(comparison))
    if comparison.findings:
        heads = ("", f"from {comparison.labels[0]}", *comparison.labels)
        findings: list[list[str | Text]] = [[row.name, row.change, *map(_found, row.runs)] for row in comparison.findings]
        console.print(_table("Findings", heads, findings))
    if comparison.settings:
        settings = ([row.name, *row.values] for row in comparison.settings)
        console.print(_table("Settings that differ", ("", *comparison.labels), settings))
    readings = [reading for reading in comparison.readings if reading.on_overview and not reading.constant]
    if readings:
        values = ([reading.name, *_values(reading)] for reading in readings[:_MOST_READINGS])
        console.print(_table("Medians of the last ten values", ("", *comparison.labels), values))
    more = sum(not reading.constant for reading in comparison.readings) - min(len(readings), _MOST_READINGS)
    if more:
        console.print(Text(f"{count(more, 'more reading')} on the page.", style="dim"))


def _runs(comparison: Comparison) -> Table:
    rows = []
    for label, name, report in zip(comparison.labels, comparison.names, comparison.reports, strict=True):
        status = "not ended, or broken off" if report.status == "running" else report.status
        rows.append((label, name, f"{report.steps:,}", status, _cost(report.cost.share), report.summary))
    return _table("Runs", ("", "run", "steps", "ended", "measuring cost", "verdict"), rows)


def _cost(share: float | None) -> str:
    if share is None:
        return "not known"
    return f"{share:,.1f} times" if share >= 2 else format_share(share)


def _found(found: Found) -> Text:
    return Text(one_line(found.text), style=STYLES[found.alert.severity] if found.alert else "dim")


def _values(reading: SharedReading) -> Iterable[str]:
    for run, value in enumerate(reading.last):
        if value is None:
            yield "not measured"
        else:
            change = reading.change(run)
            yield format_value(value) + (f" ({change})" if change else "")


def _table(title: str, heads: Iterable[str], rows: Iterable[Iterable[str | Text]]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE, pad_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(one_line(cell)) for cell in row))
    return table
