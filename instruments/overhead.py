"""Overhead: what measuring has cost so far, as a share of training time.

    overhead = seconds spent measuring / seconds spent training, both since training began

With ``budget=0.05`` it starts high, since the first steps are measured on credit, and falls to 0.05 or below.
"""

from __future__ import annotations

from cockpit_lite.instrument import GRADIENT, Instrument, Readings
from cockpit_lite.step import Step


class Overhead(Instrument):
    """Writes ``overhead``, a share without unit."""

    name = "overhead"
    needs = (GRADIENT,)  # nothing of it is used: this only says "on tracked steps", together with the cheapest instruments
    preset = "light"

    def measure(self, step: Step) -> Readings:
        return {"overhead": step.overhead}
