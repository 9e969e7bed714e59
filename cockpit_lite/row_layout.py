"""Row layouts: names, kinds and notes of readings that come at every measured step are written into the log once.

A line that defines a layout, and one that refers to it::

    {"layout": 2, "columns": ["loss", "hessian_trace", ["hessian_trace", "standard_error"]],
     "how": {"hessian_trace": {"kind": "estimated"}}}
    {"step": 8, "time": 1.4, "layout": 2, "row": [0.3, 41, 0.2]}

The second stands for ``{"step": 8, "time": 1.4, "values": {"loss": 0.3, "hessian_trace": 41}, "how": {"hessian_trace": {"kind":
"estimated", "standard_error": 0.2}}}``. A column is a reading, or a number that says how it was got. null: not on this step.
``values`` and ``how`` of the row itself come on top, key by key; null takes a key away. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Column = str | tuple[str, str]
How = Mapping[str, Mapping[str, Any]]

#: What is much the same from step to step; everything else in ``how`` is a number.
_STANDING = ("kind", "note")
#: Bytes of a place in a row without a value.
_EMPTY = len("null,")
#: Bytes of names below which a layout gains nothing.
_SHORT = 30


class _Layout:
    """Columns, and what is always the same about the readings in them."""

    def __init__(self, number: int, columns: Sequence[Column], how: How):
        self.number = number
        self.columns = tuple(columns)
        self.known = frozenset(columns)
        standing = {name: {key: about[key] for key in _STANDING if key in about} for name, about in how.items()}
        self.how = {name: about for name, about in standing.items() if about}
        self.rows = 0

    @property
    def line(self) -> dict[str, Any]:
        return {"layout": self.number, "columns": list(self.columns), **({"how": self.how} if self.how else {})}


@dataclass
class _Plan:
    """The layout for rows of certain columns, what each of them wastes in bytes, and how much has been wasted."""

    layout: _Layout
    waste: int
    wasted: int = 0


class Layouts:
    """The layouts of a log that is being written."""

    #: More than these are not defined: then the names change all the time, and are written out.
    most = 50
    #: A layout is written again after so many rows, so that a damaged line cannot spoil the rest of a run.
    again = 200

    def __init__(self) -> None:
        self._layouts: list[_Layout] = []
        self._plans: dict[tuple[Column, ...], _Plan] = {}
        self._written_out: frozenset[Column] = frozenset()  # the columns of the last row without a layout

    def lines(self, values: Mapping[str, Any], how: How) -> list[dict[str, Any]]:
        """Return what to write for a row, without its step and time: maybe a definition, and the row."""
        cells: dict[Column, Any] = {}
        cells.update(values.items())
        for name, about in how.items():
            for key, value in about.items():
                if key not in _STANDING:
                    cells[name, key] = value
        layout = self._layout_for(tuple(cells), how)
        if layout is None:
            return [{"values": values, **({"how": how} if how else {})}]
        row = [cells.get(column) for column in layout.columns]
        line: dict[str, Any] = {"layout": layout.number, "row": row}
        if len(cells) > len(row) - row.count(None):
            extra = {column: value for column, value in cells.items() if column not in layout.known}
            line["values"] = {column: value for column, value in extra.items() if isinstance(column, str)}
        else:
            extra = {}
        beside = self._beside(layout, values, how, extra)
        if beside:
            line["how"] = beside
        layout.rows += 1
        return [layout.line, line] if layout.rows % self.again == 1 else [line]

    def _layout_for(self, columns: tuple[Column, ...], how: How) -> _Layout | None:
        plan = self._plans.get(columns)
        if plan is None and _length(columns) < _SHORT:
            return None
        if plan is not None and plan.wasted + plan.waste <= _length(columns):
            plan.wasted += plan.waste
            return plan.layout
        if plan is None:
            chosen = min(self._layouts, key=lambda layout: _waste(layout, columns), default=None)
            if chosen is not None and _waste(chosen, columns) < 0.3 * _length(columns):
                if len(self._plans) < 20 * self.most:
                    self._plans[columns] = _Plan(chosen, _waste(chosen, columns))
                return chosen
            if _length(columns) > 2 * _length([column for column in columns if column in self._written_out]):
                self._written_out = frozenset(columns)
                return None  # what comes only once needs no layout
        if len(self._layouts) >= self.most:
            return None if plan is None else plan.layout
        layout = _Layout(len(self._layouts) + 1, columns, how)
        self._layouts.append(layout)
        self._plans[columns] = _Plan(layout, 0)
        return layout

    @staticmethod
    def _beside(layout: _Layout, values: Mapping[str, Any], how: How, extra: Mapping[Column, Any]) -> dict[str, dict[str, Any]]:
        """Return what the row has to say of ``how`` that its layout does not."""
        said: dict[str, dict[str, Any]] = {}
        for name in {**layout.how, **how}:
            if name not in values:
                continue
            known, about = layout.how.get(name, {}), how.get(name, {})
            if known != {key: about[key] for key in _STANDING if key in about}:
                said[name] = {key: about.get(key) for key in _STANDING if known.get(key) != about.get(key)}
        for column, value in extra.items():
            if not isinstance(column, str):
                said.setdefault(column[0], {})[column[1]] = value
        return said


def _length(columns: Sequence[Column]) -> int:
    """Return about how many bytes the names take in a line."""
    return sum(len(column) + 3 if isinstance(column, str) else len(column[0]) + len(column[1]) + 8 for column in columns)


def _waste(layout: _Layout, columns: tuple[Column, ...]) -> int:
    """Return how many bytes of a row are names or empty places."""
    extra = [column for column in columns if column not in layout.known]
    return _length(extra) + _EMPTY * (len(layout.columns) - (len(columns) - len(extra)))


def whole(line: Mapping[str, Any], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the line that a row of a layout stands for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: if they are not a row and a layout, or do not fit.
    """
    values: dict[str, Any] = {}
    how: dict[str, dict[str, Any]] = {}
    for column, value in zip(layout["columns"], line["row"], strict=True):
        if value is None:
            continue
        if isinstance(column, str):
            values[column] = value
        else:
            name, key = column
            if not isinstance(name, str) or not isinstance(key, str):
                raise TypeError("a column has no name")
            how.setdefault(name, {})[key] = value
    values.update(line.get("values", {}))
    for about in (layout.get("how", {}), line.get("how", {})):
        for name, items in about.items():
            if name in values:
                how.setdefault(name, {}).update(items)
    how = {name: kept for name, about in how.items() if (kept := {key: about[key] for key in about if about[key] is not None})}
    rest = {key: value for key, value in line.items() if key not in ("layout", "row", "values", "how")}
    return {**rest, "values": values, **({"how": how} if how else {})}
