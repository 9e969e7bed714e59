"""Verdict: the one line under a gauge that says what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cockpit_lite.plots.facts import broken_since
from cockpit_lite.plots.numbers import short
from cockpit_lite.run import Run

Health = Literal["healthy", "watch", "trouble", "neutral"]


@dataclass(frozen=True)
class Verdict:
    """What a gauge reads, in words.

    Attributes:
        text: One short sentence with the number in it.
        health: ``"neutral"`` where the number alone is neither good nor bad.
    """

    text: str
    health: Health = "neutral"


def not_finite(run: Run, *names: str, subject: str = "") -> Verdict | None:
    """Return the verdict of the first of some readings whose last value is not finite, "NaN since step 12", or None.

    Args:
        run: Where the readings come from.
        names: Of the readings.
        subject: What to say before it: "loss is".
    """
    for name in names:
        broken = broken_since(run, name)
        if broken is not None:
            return Verdict(f"{subject} {short(broken[1])} since step {broken[0]}".lstrip(), "trouble")
    return None
