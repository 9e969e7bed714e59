"""Plug-ins: instruments, rules, gauges and sinks from other packages, found by their entry points.

A package says in its ``pyproject.toml`` what it adds, and needs to be installed only::

    [project.entry-points."cockpit_lite.instruments"]
    gradient_zeros = "my_package.gradient_zeros:GradientZeros"
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from typing import Any

from cockpit_lite.isolation import warn

INSTRUMENTS = "cockpit_lite.instruments"
RULES = "cockpit_lite.rules"
GAUGES = "cockpit_lite.gauges"
SINKS = "cockpit_lite.sinks"


@lru_cache
def plugins(group: str) -> dict[str, Any]:
    """Return what other packages add to a group, by name; one that cannot be imported is left out with a warning."""
    found: dict[str, Any] = {}
    for point in entry_points(group=group):
        try:
            found[point.name] = point.load()
        except Exception as error:  # a broken package must not break the training
            warn(f"The plug-in {point.name!r} ({point.value}) could not be loaded and is left out.", error)
    return found
