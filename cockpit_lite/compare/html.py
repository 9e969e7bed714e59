"""The comparison as one HTML file, in the style of the report: no network, no script, light and dark, everything escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from markupsafe import Markup

from cockpit_lite.report.html import render

if TYPE_CHECKING:
    from cockpit_lite.compare.model import Comparison

_TEMPLATE = Path(__file__).parent / "compare.html.j2"


@dataclass(frozen=True)
class Overlays:
    """The shared gauges, or the reason why there are none.

    Attributes:
        shown: Losses, accuracies and the readings of the cockpit's first page.
        folded: The others.
        by_layer: Layerwise readings with their heat maps, one a run.
        constant: Names of readings that have the same value at all steps of all runs.
        problem: Why nothing was drawn; empty if something was.
    """

    shown: tuple[Markup, ...] = ()
    folded: tuple[Markup, ...] = ()
    constant: tuple[str, ...] = ()
    problem: str = ""
    by_layer: tuple[tuple[str, tuple[Markup, ...]], ...] = ()


def render_html(comparison: Comparison) -> str:
    """Return the page."""
    return render(_TEMPLATE, comparison=comparison, overlays=draw_overlays(comparison))


def draw_overlays(comparison: Comparison) -> Overlays:
    """Draw the readings that the runs share; never raises."""
    changing = [reading for reading in comparison.readings if not reading.constant]
    constant = tuple(reading.name for reading in comparison.readings if reading.constant)
    if not changing:
        return Overlays(constant=constant, problem="the runs share no reading that changes")
    try:
        from cockpit_lite.compare.by_layer import by_layer, layerwise_names  # these load matplotlib
        from cockpit_lite.compare.overlay import overlay

        drawn = {
            reading.name: overlay(comparison.runs, comparison.labels, reading, f"overlay-{index}")
            for index, reading in enumerate(changing)
        }
        layers = [
            (name, tuple(by_layer(comparison.runs, comparison.labels, name, f"layers-{index}")))
            for index, name in enumerate(layerwise_names(comparison.runs))
        ]
    except Exception as error:  # a comparison without its pictures is still a comparison
        return Overlays(problem=shorten(f"drawing failed ({type(error).__name__}: {error})", 200, placeholder=" ..."))
    shown = tuple(drawn[reading.name] for reading in changing if reading.on_overview)
    folded = tuple(drawn[reading.name] for reading in changing if not reading.on_overview)
    return Overlays(shown, folded, constant, by_layer=tuple((name, pictures) for name, pictures in layers if pictures))
