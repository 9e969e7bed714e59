"""A layerwise reading of several runs: a heat map for each run, side by side, with the same colours for the same values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from cockpit_lite.plots.by_layer import draw_layers
from cockpit_lite.plots.heat import HeatScale, log_scale
from cockpit_lite.plots.layers import LayerTable, layer_table
from cockpit_lite.plots.numbers import short
from cockpit_lite.plots.panel import panel
from cockpit_lite.plots.verdict import Verdict
from cockpit_lite.report.gauges import blank
from cockpit_lite.report.svg import inline_svg
from cockpit_lite.run import Run

#: A layer is named where its value at the end is so many times that of the first run, or less.
_WORTH_NAMING = 1.1


def layerwise_names(runs: Sequence[Run]) -> list[str]:
    """Return the readings of which at least two runs have the values of several layers, in the order of their recording."""
    names = dict.fromkeys(name.split("/", 1)[0] for run in runs for name in run.names if "/" in name)
    return [name for name in names if sum(len(run.layers(name)) > 1 for run in runs) > 1]


def by_layer(runs: Sequence[Run], labels: Sequence[str], name: str, key: str) -> list[Markup]:
    """Draw a reading of every run that has it; ``key`` tells the pictures apart."""
    tables = [layer_table(run, name) for run in runs]
    there = [(run, label, table) for run, label, table in zip(runs, labels, tables, strict=True) if table is not None]
    if len(there) < 2:
        return []
    signed = any((table.values < 0).any() for _, _, table in there)
    if signed:
        there = [(run, label, replace(table, values=np.abs(table.values))) for run, label, table in there]
    scale = common_scale([table for _, _, table in there])
    first = there[0]
    pictures = []
    for run, label, table in there:
        figure, ax = blank()
        title = f"{label}  {name[:1].upper()}{name[1:].replace('_', ' ')}"
        with panel(
            run, ax, title, unit="magnitude" if signed else "", needs=[f"{name}/{layer}" for layer in table.names]
        ) as board:
            draw_layers(board, run, name, scale, table)
            said = "what the others are compared with" if table is first[2] else largest_change(first[2], table, first[1])
            board.read(Verdict(said))
        pictures.append(inline_svg(figure, f"{key}-{label}"))
    return pictures


def common_scale(tables: Sequence[LayerTable]) -> HeatScale:
    """Return a scale that holds the values of all tables: linear for shares, else logarithmic over those that are not zero."""
    values = np.concatenate([table.values.ravel() for table in tables])[None]
    finite = values[np.isfinite(values)]
    if len(finite) and finite.min() == 0 and finite.max() <= 1:
        return HeatScale(0.0, float(finite.max()) or 1.0)
    return log_scale(LayerTable(("",), np.arange(values.shape[1]), values, np.full(values.shape, True)))


def largest_change(first: LayerTable, other: LayerTable, label: str) -> str:
    """Say which layer is the furthest from what it is in the first run, at the end."""
    ends = dict(zip(first.names, first.last().tolist(), strict=True))
    ratios = {
        index: value / ends[name]
        for index, (name, value) in enumerate(zip(other.names, other.last().tolist(), strict=True))
        if ends.get(name) and math.isfinite(ends[name]) and math.isfinite(value) and value / ends[name] > 0
    }
    if not ratios:
        return f"no layer can be compared with {label}"
    index, ratio = max(ratios.items(), key=lambda item: abs(math.log(item[1])))
    if max(ratio, 1 / ratio) < _WORTH_NAMING:
        return f"every layer ends as in {label}"
    change = f"{short(ratio, 2)} times that of" if ratio > 1 else f"{short(1 / ratio, 2)} times less than"
    return f"{other.label(index)}: {change} {label} at the end"
