"""Verdict: the one line under a gauge that says what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
