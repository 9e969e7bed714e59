"""The report as one HTML file: no network, no script, light and dark, everything from a log escaped."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cockpit_lite.plots.facts import described
from cockpit_lite.report.chart import charts
from cockpit_lite.report.explain import blocks, code_spans
from cockpit_lite.report.text import count, format_seconds, format_share, format_value, printable

if TYPE_CHECKING:
    from cockpit_lite.plots.layout import Layout
    from cockpit_lite.report.model import Report

_FOLDER = Path(__file__).parent
_DOTS_PER_INCH = 150  # sharp on a screen with more than 96 of them, and well below 1 MB
_DOTS_PER_INCH_FOLDED = 100  # the user waits for them, and may never open them


@dataclass(frozen=True)
class Picture:
    """The cockpit page as PNG files, or the reason why there is none.

    Attributes:
        light: On white.
        dark: On black.
        folded: Names and pictures of the pages behind it, on white; the style sheet turns them round.
        problem: Why there is no picture.
    """

    light: bytes = b""
    dark: bytes = b""
    folded: tuple[tuple[str, bytes], ...] = ()
    problem: str = ""


def render_html(report: Report, picture: Picture | None = None) -> str:
    """Return the page, with ``picture`` if it has been drawn already."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            style=Markup((_FOLDER / "report.css").read_text(encoding="utf-8")),
            picture=draw_picture(report) if picture is None else picture,
            charts=lambda alert: charts(report.run, report.watched.get(alert.code, ()), alert.step),
            settings=_flat(report.info),
            version=_version(),
        )
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) or not isinstance(value, str) else printable(value),
    )
    environment.filters.update(
        value=format_value,
        seconds=format_seconds,
        share=format_share,
        count=count,
        blocks=blocks,
        spans=code_spans,
        safe_svg=Markup,
        described=described,
        png_uri=_png_uri,
    )
    return environment


def draw_picture(report: Report) -> Picture:
    """Draw the cockpit page of the report's run; never raises."""
    if not report.steps:
        return Picture(problem="there is nothing to draw")
    try:
        from cockpit_lite.plots.layout import OVERVIEW, pages
        from cockpit_lite.plots.page import Page

        def draw(theme: str, layout: Layout, dots: int) -> bytes:
            page = Page(theme, layout)
            page.update(report.run)
            return page.png(dots)

        light, dark = (draw(theme, OVERVIEW, _DOTS_PER_INCH) for theme in ("light", "dark"))
        folded = tuple((name, draw("light", layout, _DOTS_PER_INCH_FOLDED)) for name, layout in pages(report.run).items())
    except Exception as error:  # a report without its picture is still a report
        return Picture(problem=shorten(f"drawing it failed ({type(error).__name__}: {error})", 200, placeholder=" ..."))
    return Picture(light, dark, folded)


def _png_uri(png: bytes) -> Markup:
    return Markup("data:image/png;base64," + base64.b64encode(png).decode("ascii"))


def _flat(info: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as rows, ``optimizer.lr`` and the like; what the report shows elsewhere is left out."""
    rows: list[tuple[str, Any]] = []
    for key, value in info.items():
        if not prefix and key == "cost":
            continue
        if isinstance(value, dict) and value:
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                rows += _flat(item, f"{prefix}{key}[{index}].")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _version() -> str:
    try:
        return version("cockpit-lite")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"
