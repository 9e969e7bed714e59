"""Numbers in the sentences of alerts: whatever the number is, the sentence stays one."""

from __future__ import annotations

import math


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
