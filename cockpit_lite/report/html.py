"""The report as one HTML file: no network, no script, light and dark, everything from a log escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cockpit_lite.plots.facts import described
from cockpit_lite.report.chart import charts, story_chart
from cockpit_lite.report.explain import blocks, code_spans
from cockpit_lite.report.model import NOT_SWITCHED_ON
from cockpit_lite.report.ranks import ALL_ALIKE, HEADINGS
from cockpit_lite.report.settings import flat_settings
from cockpit_lite.report.svg import colour_rules
from cockpit_lite.report.text import count, format_seconds, format_share, format_value, printable

if TYPE_CHECKING:
    from cockpit_lite.report.gauges import GaugePage
    from cockpit_lite.report.model import Check, Report

_FOLDER = Path(__file__).parent
#: From so many checks on, what they share in being left out is said once.
_FEWEST_ALIKE = 3


@dataclass(frozen=True)
class Picture:
    """The gauges of a run, or the reason why there are none.

    Attributes:
        pages: The overview, and the pages behind it.
        problem: Why there is no picture.
    """

    pages: tuple[GaugePage, ...] = ()
    problem: str = ""


def render_html(report: Report) -> str:
    """Return the page."""
    phases = report.phases
    return render(
        _FOLDER / "report.html.j2",
        report=report,
        phases=phases,
        not_checked=_grouped(report.not_checked),
        story_chart=story_chart(report.run, [phase.first for phase in phases[1:]]),
        picture=draw_picture(report),
        charts=lambda alert: charts(
            report.run if report.ranks is None else report.ranks.run_of(alert), report.watched.get(alert.code, ()), alert
        ),
        settings=flat_settings(report.info),
        rank_headings=HEADINGS,
        all_alike=ALL_ALIKE,
    )


@dataclass(frozen=True)
class NotChecked:
    """Checks that were not made, sorted for readers.

    Attributes:
        alike: Reasons that several checks share, with the checks.
        single: Checks with a reason of their own.
        switched_off: Checks that nobody asked for: the instruments they need were not switched on.
    """

    alike: tuple[tuple[str, tuple[Check, ...]], ...]
    single: tuple[Check, ...]
    switched_off: tuple[Check, ...]


def _grouped(checks: Sequence[Check]) -> NotChecked:
    off = tuple(check for check in checks if all(part.endswith(NOT_SWITCHED_ON) for part in check.reason.split("; ")))
    reasons: dict[str, list[Check]] = {}
    for check in checks:
        if check not in off:
            reasons.setdefault(check.reason, []).append(check)
    alike = {reason: tuple(found) for reason, found in reasons.items() if len(found) >= _FEWEST_ALIKE}
    single = tuple(check for reason, found in reasons.items() for check in found if reason not in alike)
    return NotChecked(tuple(alike.items()), single, off)


def render(template: Path, **content: Any) -> str:
    """Return a page from a template that may build on those of this folder, with ``content`` escaped where it is shown."""
    return (
        _environment(template.parent)
        .get_template(template.name)
        .render(style=_style_sheet(), colours=colour_rules(), version=_version(), **content)
    )


def _style_sheet() -> Markup:
    return Markup((_FOLDER / "report.css").read_text(encoding="utf-8"))


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else printable(value),
    )
    environment.globals["zip"] = zip
    environment.filters.update(
        value=format_value,
        seconds=format_seconds,
        share=format_share,
        count=count,
        blocks=blocks,
        spans=code_spans,
        safe_svg=Markup,
        described=described,
    )
    return environment


def draw_picture(report: Report) -> Picture:
    """Draw the gauges of the report's run; never raises."""
    if not report.steps:
        return Picture(problem="there is nothing to draw")
    try:
        from cockpit_lite.report.gauges import gauge_pages  # loads matplotlib

        return Picture(gauge_pages(report.run))
    except Exception as error:  # a report without its picture is still a report
        return Picture(problem=shorten(f"drawing it failed ({type(error).__name__}: {error})", 200, placeholder=" ..."))


def _version() -> str:
    try:
        return version("cockpit-lite")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
