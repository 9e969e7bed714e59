"""Numbers and names as a person reads them; names from a log are made safe to print."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

_LONGEST_LIST = 6


def printable(text: object) -> str:
    r"""Return ``text`` with everything that could steer a terminal or hide text made visible; new lines and tabs stay.

    Names in a log come from other people's models: an escape sequence in one could clear the screen, a lone surrogate could
    not be written, and a bidirectional override would show another name than the one that is there.

    >>> printable("layer\x1b[2J")
    'layer\\x1b[2J'
    """
    text = str(text)
    if text.isascii() and text.isprintable():  # nearly always, and much faster
        return text
    # However long it is, it is made of few different characters.
    unseen = [letter for letter in set(text) - {"\n", "\t"} if unicodedata.category(letter) in ("Cc", "Cf", "Cs")]
    return text.translate({ord(letter): _escaped(letter) for letter in unseen}) if unseen else text


def one_line(text: object) -> str:
    r"""Return ``text`` printable and on one line.

    >>> one_line("two\n  lines")
    'two lines'
    """
    return printable(" ".join(str(text).split()))


def format_value(value: Any) -> str:
    """Return a number, text, list or mapping in a short form.

    >>> format_value(0.000123456), format_value(12345.678), format_value(0.5), format_value(float("nan"))
    ('0.000123', '12,346', '0.5', 'NaN')
    >>> format_value([1, 2, 3, 4, 5, 6, 7, 8])
    '1, 2, 3, 4, 5, 6, ... (8 in all)'
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_value(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        shown = ", ".join(format_value(item) for item in value[:_LONGEST_LIST])
        return shown if len(value) <= _LONGEST_LIST else f"{shown}, ... ({len(value)} in all)"
    return str(value)


def format_seconds(seconds: float) -> str:
    """Return a duration.

    >>> format_seconds(0.0123), format_seconds(4.24), format_seconds(200), format_seconds(7300)
    ('12 ms', '4.2 s', '3 min 20 s', '2 h 1 min')
    """
    if not math.isfinite(seconds):
        return _format_float(seconds) + " s"
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s" if whole < 7200 else f"{whole // 3600:,} h {whole % 3600 // 60} min"


def format_share(share: float) -> str:
    """Return a share as a percentage.

    >>> format_share(0.0423), format_share(0.25), format_share(0.00004)
    ('4.2 %', '25 %', '0.004 %')
    """
    percent = 100 * share
    return f"{percent:,.0f} %" if abs(percent) >= 10 else f"{percent:.2g} %"


def count(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> count(1, "check"), count(2, "check")
    ('1 check', '2 checks')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(parts: Sequence[str]) -> str:
    """Return parts as a person lists them.

    >>> listed(["a", "b", "c"]), listed(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _format_float(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinity" if value > 0 else "-infinity"
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:.4g}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
