"""The report as Markdown for a pull request: the findings with cause and advice, the rest folded.

Text from a log is escaped, so that it neither formats anything nor mentions anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cockpit_lite.alert import Alert
from cockpit_lite.plots.facts import described
from cockpit_lite.report.explain import code_spans
from cockpit_lite.report.ranks import ALL_ALIKE, HEADINGS
from cockpit_lite.report.text import count, format_seconds, format_value, one_line

if TYPE_CHECKING:
    from cockpit_lite.report.model import Report

_SIGNS = {"error": "🔴", "warning": "🟠", "note": "🔵"}
_MOST_PLACES = 6
#: Everything that formats, links, or begins an element. Dashes, plus signs and colons format nothing inside of a line.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
#: GitHub makes links and mentions of these without any sign around them; an invisible joiner keeps them text.
_LINKS = re.compile(r"(@|https?:|www\.)")
_WORD_JOINER = "\N{WORD JOINER}"


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown."""
    head = [described(report.info.get("model")), described(report.info.get("optimizer")), count(report.steps, "step")]
    head += [format_seconds(report.run.seconds), "not ended, or broken off" if report.status == "running" else report.status]
    lines = [f"## Training report: {escaped(report.run.folder.resolve().name)}", ""]
    lines += [" · ".join(escaped(part) for part in head if part), "", f"**{escaped(report.summary)}**", ""]
    lines += [f"{escaped(report.ending)}", ""] if report.ending else []
    lines += [*(f"- {escaped(reason)}" for reason in report.no_step_reasons), ""] if report.no_step_reasons else []
    for alert in report.findings:
        lines += [*_finding(alert, report.place(alert)), ""]
    if report.phases:
        lines += ["### Story", ""]
        for phase in report.phases:
            steps = f"Step {phase.first}" if phase.first == phase.last else f"Steps {phase.first} to {phase.last}"
            found = f" Found: {escaped(', '.join(phase.findings))}." if phase.findings else ""
            lines.append(f"1. **{steps}.** {escaped(phase.text)}{found}")
        lines.append("")
    if report.ranks is not None:
        lines += ["### Ranks", "", *(f"- {escaped(text)}" for text in report.ranks.text or (ALL_ALIKE,)), ""]
        lines += [f"| {' | '.join(HEADINGS)} |", f"| {' | '.join(['---:'] * (len(HEADINGS) - 1))} | --- |"]
        lines += [*(f"| {' | '.join(escaped(cell) for cell in row.cells)} |" for row in report.ranks.rows), ""]
    lines += _folded(
        f"Passed: {count(len(report.passed), 'check')}",
        (f"- {code(check.code)} **No {escaped(check.name)}.** {prose(check.reason)}" for check in report.passed),
    )
    lines += _folded(
        f"Not checked: {len(report.not_checked)}",
        (f"- {code(check.code)} **{escaped(check.name)}:** {escaped(check.reason)}." for check in report.not_checked),
    )
    lines += _folded(
        f"Last values of {count(len(report.last_values), 'reading')}",
        [
            "| reading | value | step | how |",
            "| --- | ---: | ---: | --- |",
            *(
                f"| {code(row.name)} | {format_value(row.value)} | {row.step} | {escaped(row.how or 'exact')} |"
                for row in report.last_values
            ),
        ]
        if report.last_values
        else [],
    )
    lines.append(escaped(report.cost.text))
    return "\n".join(lines) + "\n"


def _finding(alert: Alert, ranks: str) -> list[str]:
    where = ", ".join(code(place) for place in alert.where[:_MOST_PLACES])
    if len(alert.where) > _MOST_PLACES:
        where += f" and {len(alert.where) - _MOST_PLACES} more"
    place = f"S{alert.steps_text[1:]}{', in ' + where if where else ''}{ranks}."
    return [
        f"### {_SIGNS[alert.severity]} {escaped(alert.name)} ({alert.severity}, {code(alert.code)})",
        "",
        f"{place} {prose(alert.cause)}",
        "",
        f"**What to do.** {prose(alert.advice)}",
    ]


def _folded(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return ["<details>", f"<summary>{title}</summary>", "", *lines, "", "</details>", ""] if lines else []


def prose(text: str) -> str:
    r"""Return text with its backquoted code as code and everything else escaped.

    >>> prose("set ``lr`` to *0.1*")
    'set `lr` to \\*0.1\\*'
    """
    return "".join(code(piece) if is_code else escaped(piece, strip=False) for is_code, piece in code_spans(text))


def escaped(text: object, strip: bool = True) -> str:
    r"""Return text on one line that shows as it is.

    >>> escaped("<b> a_b *c*")
    '\\<b\\> a\\_b \\*c\\*'
    >>> escaped("learning-rate: 0.1")
    'learning-rate: 0.1'
    """
    line = one_line(text)
    if not strip:  # spaces around code
        line = (" " if str(text)[:1].isspace() else "") + line + (" " if str(text)[-1:].isspace() and line else "")
    return _LINKS.sub(rf"\1{_WORD_JOINER}", _SPECIAL.sub(r"\\\1", line))


def code(text: object) -> str:
    r"""Return text as code, whatever backquotes it holds; a bar is spelled out, since it would end the cell of a table.

    >>> code("0.weight"), code("a`b")
    ('`0.weight`', '`` a`b ``')
    """
    line = one_line(text).replace("|", r"\|")
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    if not longest:
        return f"`{line}`" if line else ""
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}"
