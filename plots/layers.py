"""Layerwise readings as tables: layers by steps, their names short enough for an axis, their course with depth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cockpit_lite.plots.facts import scalars
from cockpit_lite.run import Run

#: Letters of a layer's name beside an axis.
NAME_LENGTH = 15


@dataclass(frozen=True)
class LayerTable:
    """A layerwise reading.

    Attributes:
        names: Of the layers, in network order.
        steps: At which at least one of them was measured.
        values: Shape (layers, steps); NaN where a layer has no finite value.
        known: Same shape, whether it was measured there: NaN and Inf are, too.
    """

    names: tuple[str, ...]
    steps: np.ndarray
    values: np.ndarray
    known: np.ndarray

    def last(self, count: int = 5) -> np.ndarray:
        """Return the median of the last ``count`` finite values of each layer, so that no single step decides; NaN: none."""
        found = np.full(len(self.names), np.nan)
        for index, row in enumerate(self.values[:, -4 * count :]):
            finite = row[np.isfinite(row)]
            if len(finite):
                found[index] = np.median(finite[-count:])
        return found

    def label(self, index: int, length: int = 24) -> str:
        """Return the name of a layer as it stands beside the axis, with room for a little more of it."""
        name = shorten_middle(short_names(self.names, length=1_000)[index], length)
        return f"layer {name}" if name.isdigit() else name

    def broken(self) -> list[str]:
        """Return the layers whose last value is not finite."""
        found = []
        for name, row, known in zip(self.names, self.values, self.known, strict=True):
            places = np.flatnonzero(known)
            if len(places) and not math.isfinite(row[places[-1]]):
                found.append(name)
        return found


def layer_table(run: Run, name: str) -> LayerTable | None:
    """Return what the run knows of ``<name>/<layer>``, or None if it knows nothing."""
    columns = {layer: scalars(run, f"{name}/{layer}") for layer in run.layers(name)}
    columns = {layer: column for layer, column in columns.items() if len(column[0])}
    if not columns:
        return None
    shapes = run.info.get("shapes")
    if (
        isinstance(shapes, Mapping) and columns.keys() <= shapes.keys()
    ):  # parameters may have been written in the order of backward
        columns = {layer: columns[layer] for layer in shapes if layer in columns}
    every = [steps for steps, _ in columns.values()]
    steps = every[0] if all(np.array_equal(every[0], other) for other in every) else np.unique(np.concatenate(every))
    values, known = np.full((len(columns), len(steps)), np.nan), np.zeros((len(columns), len(steps)), bool)
    for row, (own_steps, own_values) in enumerate(columns.values()):
        places = np.searchsorted(steps, own_steps)
        values[row, places], known[row, places] = np.where(np.isfinite(own_values), own_values, np.nan), True
    return LayerTable(tuple(columns), steps, values, known)


def growth(values: np.ndarray) -> float | None:
    """Return the factor from each layer to the next one, by least squares over the logarithms, or None with fewer than three.

    >>> growth(np.array([1.0, 2.0, 4.0, 8.0])), growth(np.array([1.0, np.nan, 0.0]))
    (2.0, None)
    """
    usable = np.isfinite(values) & (values > 0)
    if usable.sum() < 3:
        return None
    slope = float(np.polyfit(np.flatnonzero(usable), np.log(values[usable]), 1)[0])
    return round(math.exp(min(max(slope, -300.0), 300.0)), 12)


def short_names(names: Sequence[str], length: int = NAME_LENGTH) -> list[str]:
    """Return names that still tell the layers apart: without the parts that all share, the rest shortened in the middle.

    >>> short_names(["net.layers.0.weight", "net.layers.1.weight"]), short_names(["0.weight", "2.weight", "2.bias"])
    (['0', '1'], ['0.weight', '2.weight', '2.bias'])
    >>> short_names(["encoder.attention.output.dense", "decoder"], 12)
    ['encode…dense', 'decoder']
    """
    parts = [name.split(".") for name in names]
    if len(parts) > 1:
        while all(len(part) > 1 for part in parts) and len({part[0] for part in parts}) == 1:
            parts = [part[1:] for part in parts]
        while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
            parts = [part[:-1] for part in parts]
    return [shorten_middle(".".join(part), length) for part in parts]


def shorten_middle(text: str, length: int) -> str:
    """Return the text with its middle left out where it is too long: beginning and end tell names apart.

    >>> shorten_middle("blocks.11.attention.query", 12)
    'blocks…query'
    """
    if len(text) <= length:
        return text
    end = (length - 1) // 2
    return text[: length - 1 - end] + "…" + text[-end:]
