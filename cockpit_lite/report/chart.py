"""Small curves as inline SVG in the colours of the page: beside a finding what its rule looked at, and the loss of the story."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from cockpit_lite.report.text import format_value, listed, one_line

if TYPE_CHECKING:
    from cockpit_lite.alert import Alert
    from cockpit_lite.run import Run

_WIDTH, _HEIGHT = 300, 84
_TOP, _BOTTOM, _SIDE = 10, 74, 4
#: Of the loss over the whole run, which takes the width of the page.
_STORY_WIDTH = 1000
_MOST_CHARTS = 3
#: From this ratio of the largest to the smallest value on, the axis is logarithmic.
_LOG_FROM = 50.0


@dataclass(frozen=True)
class Chart:
    """A drawn curve.

    Attributes:
        name: Of the reading.
        svg: The picture, safe to be put into a page.
        low: Value at the bottom of the axis.
        high: Value at its top.
        scale: ``"log"`` or ``"linear"``.
        steps: First and last step.
    """

    name: str
    svg: str
    low: str
    high: str
    scale: str
    steps: tuple[int, int]


def charts(run: Run, names: Iterable[str], alert: Alert) -> list[Chart]:
    """Return curves of the readings that a rule looks at, with the step of its finding marked.

    Of a reading by layer the first layer is shown that the finding is about. Readings of arrays, and with fewer than two values,
    are not drawn.
    """
    drawn = []
    wanted = [name if not run.layers(name) else f"{name}/{_layer(run, name, alert)}" for name in names]
    for name in [*wanted, *(name for name in names if name not in wanted)]:
        found = _series(run, name)
        if found is not None:
            text = f"; the finding was made at step {alert.step}"
            drawn.append(_draw(name, *found, (alert.step,), text, _WIDTH))
    return drawn[:_MOST_CHARTS]


def story_chart(run: Run, borders: Sequence[int]) -> Chart | None:
    """Return the loss over the whole run, with the borders between its phases; None if there is nothing to draw."""
    found = _series(run, "loss")
    if found is None:
        return None
    text = f"; a new phase begins at step {listed([str(step) for step in borders])}" if borders else ""
    return _draw("loss", *found, tuple(borders), text, _STORY_WIDTH, ' preserveAspectRatio="none"')


def _layer(run: Run, name: str, alert: Alert) -> str:
    # A finding names modules or parameters; a reading of the other kind belongs to it, too.
    layers = run.layers(name)
    for place in alert.where:
        for layer in layers:
            if layer == place or layer.startswith(f"{place}.") or place.startswith(f"{layer}."):
                return layer
    return ""


def _series(run: Run, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        steps, values = run.series(name)
    except (KeyError, ValueError):  # layerwise, arrays of different shapes, or never measured
        return None
    return (steps, values) if values.ndim == 1 and len(values) > 1 and np.isfinite(values).any() else None


def _draw(name: str, steps: np.ndarray, values: np.ndarray, marked: Sequence[int], more: str, width: int, fit: str = "") -> Chart:
    finite = np.isfinite(values)
    logarithmic = bool(values[finite].min() > 0 and values[finite].max() > _LOG_FROM * values[finite].min())
    low, high = float(values[finite].min()), float(values[finite].max())
    height = np.where(finite, values, np.nan)
    height = np.log(height) if logarithmic else height / 2  # halved, since the range of two floats may be no float
    bottom, top = np.nanmin(height), np.nanmax(height)
    span = top - bottom
    y = np.where(finite, _BOTTOM - (_BOTTOM - _TOP) * ((height - bottom) / span if span else 0.5), np.nan)
    x = _x(steps, steps, width)
    pieces = []
    for mark in _x(np.array([step for step in marked if steps[0] <= step <= steps[-1]]), steps, width):
        pieces.append(f'<line class="mark" x1="{mark:.1f}" x2="{mark:.1f}" y1="2" y2="{_HEIGHT - 2}"/>')
    pieces += [f'<polyline points="{points}"/>' for points in _polylines(x, y, width // 2)]
    # Never drop what the user looks for: not finite values stand at the upper edge.
    pieces += [f'<path class="not-finite" d="M{left - 3:.0f} 1 h6 l-3 6 z"/>' for left in np.unique(x[~finite].round())]
    text = (
        f"{one_line(name)} over steps {steps[0]} to {steps[-1]}: from {format_value(float(values[0]))} to "
        f"{format_value(float(values[-1]))}, between {format_value(low)} and {format_value(high)}"
        + (f", {int((~finite).sum())} values not finite" if not finite.all() else "")
        + more
    )
    label = escape(text, quote=True)
    svg = f'<svg viewBox="0 0 {width} {_HEIGHT}"{fit} role="img" aria-label="{label}">{"".join(pieces)}</svg>'
    return Chart(
        name, svg, format_value(low), format_value(high), "log" if logarithmic else "linear", (int(steps[0]), int(steps[-1]))
    )


def _x(steps: np.ndarray, shown: np.ndarray, width: int) -> np.ndarray:
    first, last = float(shown[0]), float(shown[-1])
    return _SIDE + (width - 2 * _SIDE) * (steps - first) / max(last - first, 1.0)


def _polylines(x: np.ndarray, y: np.ndarray, columns: int) -> list[str]:
    # Cut where values are missing, and thinned to the lowest and the highest point of every column: two units wide.
    column = np.minimum(((x - x[0]) / max(x[-1] - x[0], 1e-9) * columns).astype(int), columns - 1)
    lines: list[list[str]] = [[]]
    for start, end in zip(*_runs(column), strict=True):
        part = y[start:end]
        if np.isnan(part).any():
            lines.append([])
        if np.isnan(part).all():
            continue
        for index in sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}):
            lines[-1].append(f"{x[index]:.1f},{y[index]:.1f}")
    # One point alone is drawn as a short dash.
    return [" ".join(line) if len(line) > 1 else f"{line[0]} {line[0]}" for line in lines if line]


def _runs(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.concatenate([[0], np.flatnonzero(np.diff(column)) + 1])
    return starts, np.append(starts[1:], len(column))
