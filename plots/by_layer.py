"""By layer: any layerwise reading as a heat map, or as a curve with its limit where there is one layer only."""

from __future__ import annotations

import math

from cockpit_lite.plots.heat import HeatScale, log_scale
from cockpit_lite.plots.layers import LayerTable, layer_table
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.plots.panel import Panel
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
