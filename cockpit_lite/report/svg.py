"""A matplotlib figure as inline SVG: small, without ids that could meet those of another, in the colours of the page around it.

The colours of the theme become variables of the style sheet, so one picture serves light, dark and paper. A picture that holds
a heat map, whose pixels know no variables, keeps its colours and is marked to be turned round in the dark.
"""

from __future__ import annotations

import io
import re
from dataclasses import fields
from html import escape, unescape

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from cockpit_lite.plots import style
from cockpit_lite.plots.style import Theme
from cockpit_lite.report.text import printable

#: How much of a series colour the legend of a band shows; see ``Panel.band``.
_PALE = 0.3

_HEADER = re.compile(r"^.*?<svg[^>]*>", re.DOTALL)
_DEFINED = re.compile(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", re.DOTALL)
_IDENTIFIER = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'url\(#([^)"]*)\)|xlink:href="#([^"]*)"')
_COORDINATES = re.compile(r'\b(d|x|y|width|height|transform|points)="([^"]*)"')
_DECIMALS = re.compile(r"(\d\.\d)\d+")
_TEXT = re.compile(r'<text [^>]*?style="([^"]*)"[^>]*>(.*?)</text>', re.DOTALL)
_SIZE = re.compile(r"font-size: ([\d.]+)px")
_TAG = re.compile(r"<[^>]*>")
_NO_ROTATION = re.compile(r' transform="rotate\(-0 [^"]*\)"')
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")


def inline_svg(figure: Figure, key: str) -> Markup:
    """Return the figure of a gauge as an ``<svg>`` element, whose text alternative is what the gauge says in words.

    Args:
        figure: In the light theme; what is behind its axes is left to the page.
        key: Told apart from that of every other picture on the page by its letters and digits.
    """
    figure.patch.set_visible(False)
    drawn = io.StringIO()
    # A name in a script that no installed font knows is the reader's browser's to draw: text stays text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cockpit-lite", "path.simplify_threshold": 0.5}):
        FigureCanvasSVG(figure).print_svg(drawn, metadata={"Date": None, "Creator": None})
    body = _DEFINED.sub("", _HEADER.sub("", drawn.getvalue(), count=1))
    label = _spoken(body)
    turned = "<image" in body
    used = {first or second for first, second in _REFERENCE.findall(body)}
    # Only inside of tags: a module may be called "#ffffff".
    body = _TAG.sub(lambda tag: _tidied(tag[0], key, used, variables=not turned), re.sub(r">\s+<", "><", body))
    width, height = (72 * size for size in figure.get_size_inches())
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(printable(label), quote=True)}"'
    look = ' class="turned"' if turned else ""
    # Without the words of the picture, which tell nothing one by one, to those who hear its label.
    return Markup(f'{head}{look}><g aria-hidden="true">{printable(body).strip().removesuffix("</svg>")}</g></svg>')


def colour_rules() -> Markup:
    """Return the style sheet's rules that give the variables their colours, light, dark and on paper."""
    light, dark = ("".join(f"--gauge-{name}: {value};" for name, value in colours(theme).items()) for theme in _THEMES)
    return Markup(f":root {{{light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{{dark}}} }}")


def colours(theme: Theme) -> dict[str, str]:
    """Return the colours of a theme by the names of their variables."""
    found: dict[str, str] = {}
    for field in fields(theme):
        value = getattr(theme, field.name)
        if isinstance(value, str):
            found[field.name] = value
    for index, shade in enumerate(theme.series):
        found[f"series-{index}"] = shade
        found[f"series-{index}-pale"] = style.mix(shade, theme.card, _PALE)
    return found


_THEMES = (style.LIGHT, style.DARK)
#: Two colours that are equal in the light are equal in the dark, too; a test holds it.
_VARIABLES = {value: f"var(--gauge-{name})" for name, value in reversed(colours(style.LIGHT).items())}


def _spoken(body: str) -> str:
    """Return what a gauge says in words, for those who do not see it: its title, and the line under it or why it is empty."""
    title, line = [], []
    for look, text in _TEXT.findall(body):
        text = unescape(_TAG.sub("", text)).strip()
        found = _SIZE.search(look)
        size = float(found[1]) if found else 0.0
        if size == style.TITLE_SIZE:
            title.append(text)
        elif size == style.VERDICT_SIZE and text not in style.SYMBOLS.values():
            line.append(text)
    return ": ".join(" ".join(part) for part in (title, line) if part)


def _tidied(tag: str, key: str, used: set[str], *, variables: bool) -> str:
    """Return a tag with short numbers and the page's colours, and without identifiers but those in use, which get a prefix."""
    prefix = re.sub(r"\W", "-", key)
    tag = _IDENTIFIER.sub(lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", tag)
    tag = _REFERENCE.sub(lambda match: f"url(#{prefix}-{match[1]})" if match[1] else f'xlink:href="#{prefix}-{match[2]}"', tag)
    tag = _COORDINATES.sub(lambda match: f'{match[1]}="{_short_path(match[2])}"', tag)
    tag = _NO_ROTATION.sub("", tag)
    return _COLOUR.sub(lambda match: _VARIABLES.get(match[0], match[0]), tag) if variables else tag


def _short_path(numbers: str) -> str:
    r"""Return coordinates to a tenth of a point, on one line.

    >>> _short_path("M 12.3456 7 \nL 1.04 2 \n")
    'M 12.3 7 L 1.0 2'
    """
    return " ".join(_DECIMALS.sub(r"\1", numbers).split())
