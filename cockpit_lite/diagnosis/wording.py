"""Numbers in the sentences of alerts: whatever the number is, the sentence stays one."""

from __future__ import annotations

import math
from collections.abc import Sequence


def in_words(value: float) -> str:
    """Return a number with three digits; "infinite" and "not a number" in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinity"
    return f"{value:.3g}"


def share_in_words(value: float) -> str:
    """Return a share of something: "12 % of", "3.1 times", "infinitely many times"."""
    if math.isinf(value):
        return "infinitely many times"
    return f"{value:.3g} times" if value >= 2 else f"{value:.0%} of" if value >= 0.01 else f"{value:.1g} of"


def listed_names(names: Sequence[str], most: int = 4) -> str:
    """Return "a, b and c"; of many names the first ones and how many more there are."""
    shown = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "nothing"
