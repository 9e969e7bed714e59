"""By layer: any layerwise reading as a heat map, or as a curve with its limit where there is one layer only."""

from __future__ import annotations

import math
from collections.abc import Callable

from matplotlib.axes import Axes

from cockpit_lite.plots.heat import HeatScale, log_scale
from cockpit_lite.plots.layers import LayerTable, layer_table, shorten_middle
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import Panel, panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.run import Run


def draw_layers(p: Panel, run: Run, name: str, scale: HeatScale | None = None, table: LayerTable | None = None) -> None:
    """Draw the reading of every layer.

    Args:
        p: The panel.
        run: The run.
        name: The reading; where it has no layers of its own, it is drawn itself.
        scale: Of the colours, its limit drawn; None: logarithmic over the data.
        table: What to draw in place of the readings ``<name>/<layer>``.
    """
    table = layer_table(run, name) if table is None else table
    if table is not None and len(table.names) > 1:
        p.heat(table, log_scale(table) if scale is None else scale)
        return
    if table is None:
        p.line(name)
    else:
        p.curve(name, table.steps, table.values[0], label=table.names[0], smoothed=True)
    if scale is not None and scale.limit is not None:
        p.healthy(*((-math.inf, scale.limit) if scale.bad == "high" else (scale.limit, math.inf)))
        p.level("limit", scale.limit, f"limit {percent(scale.limit) if scale.shares else short(scale.limit)}")


def draw_by_parameter(run: Run, ax: Axes, name: str, title: str, unit: str, verdict: Verdict | None) -> None:
    """Draw a gauge of a reading by parameter, with its verdict underneath."""
    layers = [f"{name}/{layer}" for layer in run.layers(name)]
    with panel(run, ax, title, unit=unit, scale="auto", needs=[name, *layers]) as p:
        if not p.missing:
            draw_layers(p, run, name)
            p.read(verdict)


def verdict_by_parameter(run: Run, name: str, describe: Callable[[Run, LayerTable], Verdict | None]) -> Verdict | None:
    """Say which parameter's reading is not finite, or else what ``describe`` says of the table."""
    table = layer_table(run, name)
    if table is None:
        return None
    if broken := table.broken():
        return Verdict(f"{shorten_middle(broken[0], 30)} is not finite", "trouble")
    return describe(run, table)
