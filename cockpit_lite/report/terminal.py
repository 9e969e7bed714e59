"""The report and single alerts in a terminal; plain text where the output is none.

All text is put into ``rich.text.Text``, never into markup, so that a module called ``[red]`` keeps its name.
"""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from cockpit_lite.report.explain import blocks, code_spans, explanation
from cockpit_lite.report.model import HTML_FILE, PICTURE_FILE, Report
from cockpit_lite.report.ranks import ALL_ALIKE, HEADINGS, Ranks
from cockpit_lite.report.text import count, one_line, printable

if TYPE_CHECKING:
    from cockpit_lite.alert import Alert
    from cockpit_lite.diagnosis.rule import Rule
    from cockpit_lite.report.story import Phase

#: Of the sixteen colours that every terminal theme makes readable.
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan", "clean": "green"}
_MOST_NOT_CHECKED = 8
_MOST_PLACES = 3


def print_alert(alert: Alert, console: Console | None = None) -> None:
    """Print an alert as one line, at the moment it is raised.

    Args:
        alert: The alert.
        console: Where to; default: standard error, so that the user's own output stays clean.
    """
    line = Text.assemble((f"{alert.severity}: ", STYLES[alert.severity]), one_line(alert))
    (console or Console(stderr=True)).print(line, soft_wrap=True)


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the summary of a report; default: to standard output."""
    console = console or Console()
    parts: list[RenderableType] = [_verdict(report)]
    parts += [_finding(alert, report.place(alert)) for alert in report.findings]
    if report.no_step_reasons:
        parts.append(_listed("Why this may be:", list(report.no_step_reasons)))
    if report.phases:
        parts.append(_listed("The run's story:", [_phase(phase) for phase in report.phases]))
    if report.ranks is not None:
        parts.append(_ranks(report.ranks))
    if report.not_checked and report.steps:
        reasons = [f"{check.code} {check.name}: {check.reason}" for check in report.not_checked]
        if len(reasons) > _MOST_NOT_CHECKED:
            reasons[_MOST_NOT_CHECKED:] = [f"and {len(reasons) - _MOST_NOT_CHECKED} more"]
        parts.append(_listed(f"Not checked ({len(report.not_checked)}):", reasons))
    parts.append(_facts(report))
    for index, part in enumerate(parts):
        if index:
            console.print()
        console.print(part)
    for title, file in (("Cockpit", PICTURE_FILE), ("Report", HTML_FILE)):
        if (report.run.folder / file).is_file():  # in one line, however long: it is copied
            console.print(Text(f"{title}: {printable(report.run.folder / file)}"), soft_wrap=True)


def _verdict(report: Report) -> Text:
    tone = report.worst or ("clean" if report.passed else "warning")
    text = Text(one_line(report.summary), style=STYLES[tone])
    if report.ending:
        text.append("\n" + one_line(report.ending), style="not bold default")
    return text


def _finding(alert: Alert, ranks: str) -> Group:
    where = f" in {', '.join(alert.where[:_MOST_PLACES])}" if alert.where else ""
    if len(alert.where) > _MOST_PLACES:
        where += f" and {len(alert.where) - _MOST_PLACES} more"
    head = Text.assemble((alert.severity, STYLES[alert.severity]), "  ", (one_line(f"{alert.code} {alert.name}"), "bold"))
    head.append("  " + one_line(f"{alert.steps_text}{where}{ranks}"), style="dim")
    body = Table.grid(padding=(0, 1))
    body.add_row("", _prose(alert.cause))
    body.add_row("", Text.assemble(("What to do: ", "bold"), _prose(alert.advice)))
    return Group(head, body)


def _phase(phase: Phase) -> str:
    steps = f"step {phase.first:,}" if phase.first == phase.last else f"steps {phase.first:,} to {phase.last:,}"
    return f"{steps}: {phase.text}" + (f" Found: {', '.join(phase.findings)}." if phase.findings else "")


def _prose(text: str) -> Text:
    return Text.assemble(*((piece, "cyan") if is_code else piece for is_code, piece in code_spans(printable(text))))


def _listed(title: str, lines: list[str]) -> Group:
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("-", Text(one_line(line)))
    return Group(Text(title), table)


def _ranks(ranks: Ranks) -> Group:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in HEADINGS[:-1]:
        table.add_column(title, justify="right")
    table.add_column(HEADINGS[-1])
    for row in ranks.rows:
        table.add_row(*row.cells)
    return Group(
        Text(f"{ranks.trained} processes trained together:"), table, _listed("What differs:", list(ranks.text) or [ALL_ALIKE])
    )


def _facts(report: Report) -> Group:
    lines = []
    if report.passed:
        faults = ", ".join(f"no {one_line(check.name)}" for check in report.passed)
        lines.append(Text(f"Passed {count(len(report.passed), 'check')}: {faults}."))
    if report.run.bad_lines:
        lines.append(Text(f"{count(report.run.bad_lines, 'line')} of the log could not be read and left out.", style="yellow"))
    lines.append(Text(one_line(report.cost.text)))
    return Group(*lines)


def print_explanation(rule: Rule, console: Console) -> None:
    """Print what a finding means: the docstring of its rule."""
    console.print(Text.assemble((f"{rule.code} {rule.name}", "bold"), "  ", (rule.severity, STYLES[rule.severity])))
    for block in blocks(explanation(rule)):
        console.print()
        if block.kind == "code":
            console.print(Text(indent(block.lines[0], "    "), style="cyan"), soft_wrap=True)
        else:
            table = Table.grid(padding=(0, 1))
            for line in block.lines:
                table.add_row(*(["-"] if block.kind == "list" else []), _prose(line))
            console.print(table)
    console.print()
    console.print(Text(f"Looks at: {', '.join(rule.needs) or 'nothing but the steps'}.", style="dim"))
