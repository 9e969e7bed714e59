"""Fonts, colours and sizes of every gauge and of the cockpit page, in one place.

The series colours are those of Okabe and Ito, which people with any common colour blindness can tell apart. Severity
and health are never told by colour alone: a word, a symbol or a line style always goes with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from matplotlib.colors import to_hex, to_rgb
from matplotlib.font_manager import fontManager

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

# Type sizes in points.
HEADLINE_SIZE = 15.0
SUBLINE_SIZE = 9.5
COLUMN_SIZE = 9.0
TITLE_SIZE = 10.0
LEGEND_SIZE = 8.5
TICK_SIZE = 8.0
VERDICT_SIZE = 8.7
MARK_SIZE = 7.5

# Line widths in points.
LINE_WIDTH = 1.6
FAINT_WIDTH = 0.9
HAIR_WIDTH = 0.8

#: Narrow, well hinted sans serifs first; the last one comes with matplotlib, so there always is one.
_FAMILIES = ("Inter", "Source Sans 3", "Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans", "DejaVu Sans")


@dataclass(frozen=True)
class Theme:
    """Colours of one appearance.

    Attributes:
        page: Behind everything.
        card: Behind a gauge.
        edge: Outline of a card and the axes' lines.
        grid: Grid lines.
        text: Titles and readings.
        muted: Units, tick labels, explanations.
        series: Data, in order of importance.
        healthy: Shading and symbol of what is healthy.
        warning: A warning, and a reading to watch.
        trouble: Limits, errors, NaN and Inf.
    """

    page: str
    card: str
    edge: str
    grid: str
    text: str
    muted: str
    series: tuple[str, ...]
    healthy: str
    warning: str
    trouble: str


LIGHT = Theme(
    page="#f3f4f6",
    card="#ffffff",
    edge="#d9dce1",
    grid="#eceef1",
    text="#1d2430",
    muted="#667080",
    series=("#0072b2", "#e69f00", "#cc79a7", "#56b4e9", "#009e73"),
    healthy="#009e73",
    warning="#b36b00",
    trouble="#d04a00",
)
DARK = Theme(
    page="#14171c",
    card="#1d2128",
    edge="#363c47",
    grid="#2a2f38",
    text="#e8eaee",
    muted="#98a1af",
    series=("#56b4e9", "#e69f00", "#cc79a7", "#f0e442", "#2fc79a"),
    healthy="#2fc79a",
    warning="#f0b13c",
    trouble="#ff7a3d",
)
THEMES = {"light": LIGHT, "dark": DARK}


def theme_of(figure: Figure | SubFigure) -> Theme:
    """Return the theme that fits the background of ``figure``, so that a gauge also suits a figure of the user's own."""
    red, green, blue = to_rgb(figure.get_facecolor())
    return LIGHT if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else DARK


@cache
def font_family() -> list[str]:
    """Return the font families to use: the first one installed, and DejaVu Sans for the glyphs it lacks."""
    installed = {font.name for font in fontManager.ttflist}
    family = next(name for name in _FAMILIES if name in installed or name == "DejaVu Sans")
    return list(dict.fromkeys([family, "DejaVu Sans"]))


def breadth() -> float:
    """Return how wide letters are, in times those of the narrow fonts that are wished for."""
    return 1.16 if font_family()[0] == "DejaVu Sans" else 1.0


def mix(colour: str, background: str, share: float) -> str:
    """Return what ``share`` of a colour on a background looks like.

    >>> mix("#000000", "#ffffff", 0.2)
    '#cccccc'
    """
    red, green, blue = (
        share * front + (1 - share) * back for front, back in zip(to_rgb(colour), to_rgb(background), strict=True)
    )
    return to_hex((red, green, blue))


def severity_colour(theme: Theme, severity: str) -> str:
    """Return the colour of an alert."""
    return {"error": theme.trouble, "warning": theme.warning}.get(severity, theme.muted)


#: Alert severity -> line style, so that the marks can be told apart without colour.
SEVERITY_LINES = {"error": "-", "warning": (0, (4, 2)), "note": (0, (1, 2))}

#: Health -> the symbol in front of a verdict, differing in shape.
SYMBOLS = {"healthy": "●", "watch": "▲", "trouble": "■", "neutral": ""}


def health_colour(theme: Theme, health: str) -> str:
    """Return the colour of a verdict's symbol."""
    return {"healthy": theme.healthy, "watch": theme.warning, "trouble": theme.trouble}.get(health, theme.muted)
