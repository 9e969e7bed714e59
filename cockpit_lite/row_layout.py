"""Row layouts: names, kinds and notes of readings that come at every measured step are written into the log once.

A line that defines a layout, and one that refers to it::

    {"layout": 2, "columns": ["loss", "hessian_trace", ["hessian_trace", "standard_error"]],
     "how": {"hessian_trace": {"kind": "estimated"}}}
    {"step": 8, "time": 1.4, "layout": 2, "row": [0.3, 41, 0.2]}

The second stands for ``{"step": 8, "time": 1.4, "values": {"loss": 0.3, "hessian_trace": 41}, "how": {"hessian_trace": {"kind":
"estimated", "standard_error": 0.2}}}``. A column is a reading, or a number that says how it was got. null: not on this step.
``values`` and ``how`` of the row itself come on top, key by key; null takes a key away.

Since schema 2 a column may also be the same reading of 5 layers and more, and a cell their numbers packed (packed_numbers.py)::

    {"layout": 3, "columns": ["loss", {"of": "gsnr", "names": ["0.weight", "0.bias", ...], "how": {"kind": "conditional"}},
                              {"of": "ggn_trace", "names": 1}, {"of": "ggn_trace", "about": "standard_error", "names": 1}]}
    {"step": 9, "time": 1.5, "layout": 3, "row": [0.3, "62fPczNPkzNP...", "=1", null]}

``names`` as a number: those of that column. Such a cell is null (none of them on this step), a list (null: not
that one), or a text. "=1": the same as cell 1 of the row. Longer arrays are packed, too. In ``values`` of a row a pair is a
value and how it was got: ``{"grad_hist_1d/0.bias": ["59zh...", {"kind": "estimated"}]}``; "/": as that of ``grad_hist_1d``. A
layout has short arrays of its first row as ``fixed``, by the number of the cell: there "=" stands for the same again.

Significant digits: seven, which is what float32 knows; three of a standard error or residual, and of what has one no more than to
a hundredth of its first digit.
Packed ones have 3.6, arrays 4.8, and fewer where less is known: 2.4 what has a standard error of 2 % or more, 1.5 (off by 3 % at
most) standard errors, residuals, and histograms of a few hundred elements. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any

from cockpit_lite.packed_numbers import Form, is_packed, pack, unpack

Column = str | tuple[str, str]
How = Mapping[str, Mapping[str, Any]]

#: What is much the same from step to step; everything else in ``how`` is a number.
_STANDING = ("kind", "note")
#: Bytes of a place in a row without a value.
_EMPTY = len("null,")
#: Bytes of names below which a layout gains nothing.
_SHORT = 30
#: Layers from which on a reading of all of them is packed: of fewer a log that can be read by eye is as short.
_MANY = 5
#: Numbers of an array from which on it is packed.
_LONG = 7
#: Characters of a cell from which on it is worth saying that another one is the same.
_REPEATED = 12
#: The short array of the layout, once more; and: got as that was which it is a part of.
_AGAIN, _ALIKE = "=", "/"
#: So many numbers that are not exact, none of them negative, are a density, or a histogram where they are whole.
_COUNTS = 50
#: Columns of a layout, and packed numbers of a row, at most: a short text stands for many of them.
_MOST = 2**21
#: A packed number of two bytes is off by 0.4 % at most: little beside a standard error of so much of the value.
_UNSURE = 0.02


@dataclass(frozen=True)
class _Group:
    """Columns that lie side by side: the same of many layers.

    Attributes:
        errors: Where the columns with their standard errors begin, if there are any.
    """

    start: int
    end: int
    of: str
    about: str
    names: tuple[str, ...]
    errors: int | None = None


def _groups(columns: Sequence[Column]) -> list[_Group]:
    """Return the groups among the columns, in order."""

    def kind(place: int) -> tuple[str, str] | int:
        column = columns[place]
        name, about = (column, "") if isinstance(column, str) else column
        of, slash, _ = name.partition("/")
        return (of, about) if slash else place

    groups: dict[tuple[str, str, tuple[str, ...]], _Group] = {}
    for key, run in groupby(range(len(columns)), kind):
        places = list(run)
        if isinstance(key, tuple) and len(places) >= _MANY:
            of, about = key
            chosen = [columns[place] for place in places]
            names = tuple((column if isinstance(column, str) else column[0]).partition("/")[2] for column in chosen)
            groups[of, about, names] = _Group(places[0], places[-1] + 1, of, about, names)
    return [
        _Group(g.start, g.end, g.of, g.about, g.names, errors.start if not g.about and errors is not None else None)
        for g in groups.values()
        for errors in [groups.get((g.of, "standard_error", g.names))]
    ]


class _Layout:
    """Columns, and what is always the same about the readings in them."""

    def __init__(self, number: int, columns: Sequence[Column], how: How, values: Mapping[str, Any] = MappingProxyType({})):
        self.number = number
        self.columns = tuple(columns)
        self.known = frozenset(columns)
        standing = {name: {key: about[key] for key in _STANDING if key in about} for name, about in how.items()}
        self.how = {name: about for name, about in standing.items() if about}
        self.rows = 0
        self._groups = _groups(self.columns)
        inside = {place for group in self._groups for place in range(group.start, group.end)}
        parts: list[int | _Group] = [place for place in range(len(self.columns)) if place not in inside]
        parts += self._groups
        #: A place in the row, or a group of them, for each cell.
        self._parts = sorted(parts, key=lambda part: part if isinstance(part, int) else part.start)
        places = {column: place for place, column in enumerate(self.columns)}
        #: Place of a reading -> that of what it may be off by.
        self._errors = {
            places[name]: place for (name, _), place in ((c, p) for c, p in places.items() if type(c) is tuple) if name in places
        }
        #: Cell -> a short array that is the same again and again.
        self._fixed: dict[int, list[Any]] = {}
        for cell, part in enumerate(self._parts):
            column = self.columns[part] if isinstance(part, int) else ()
            value = values.get(column) if isinstance(column, str) else None
            if type(value) is list and len(str(value)) >= _REPEATED and _count(value) < _LONG:
                self._fixed[cell] = value

    @property
    def line(self) -> dict[str, Any]:
        """What defines it in the log."""
        columns: list[Any] = []
        how = dict(self.how)
        spelled: dict[tuple[str, ...], int] = {}
        for part in self._parts:
            if isinstance(part, int):
                columns.append(self.columns[part])
                continue
            group: dict[str, Any] = {"of": part.of, "names": spelled.get(part.names, list(part.names))}
            spelled.setdefault(part.names, len(columns))
            if part.about:
                group["about"] = part.about
            else:
                members = [f"{part.of}/{name}" for name in part.names]
                common = how.get(members[0])
                if common and all(how.get(member) == common for member in members):
                    group["how"] = common
                    for member in members:
                        del how[member]
            columns.append(group)
        fixed = {str(cell): value for cell, value in self._fixed.items()}
        line = {"layout": self.number, "columns": columns}
        return {**line, **({"fixed": fixed} if fixed else {}), **({"how": how} if how else {})}

    def cells(self, row: Sequence[Any]) -> list[Any]:
        """Return what is written of a row with a value for each column."""
        written: list[Any] = []
        said: dict[str, int] = {}
        for number, part in enumerate(self._parts):
            if isinstance(part, int) and number in self._fixed and row[part] == self._fixed[number]:
                written.append(_AGAIN)
                continue
            cell = self._cell(part, row) if isinstance(part, int) else self._packed(part, row)
            text = cell if type(cell) is str else repr(cell) if type(cell) is list and len(cell) < _LONG else ""
            if len(text) >= _REPEATED:
                first = said.setdefault(text, len(written))
                cell = cell if first == len(written) else f"={first}"
            written.append(cell)
        return written

    def _cell(self, place: int, row: Sequence[Any]) -> Any:
        column, value = self.columns[place], row[place]
        if type(value) is float:
            if type(column) is not str:
                return float(f"{value:.3g}")
            return _as_far_as_known(value, row[self._errors[place]]) if place in self._errors else value
        return _packed_array(value, exact=type(column) is str and self.how.get(column, {}).get("kind", "exact") == "exact")

    @staticmethod
    def _packed(group: _Group, row: Sequence[Any]) -> Any:
        values = row[group.start : group.end]
        if None in values:
            return None if values.count(None) == len(values) else values
        form: Form = "i" if group.about else "g"
        if group.errors is not None:
            errors = row[group.errors : group.errors + len(values)]
            if None not in errors and all(e >= _UNSURE * abs(value) for e, value in zip(errors, values, strict=True)):
                form = "h"
        return pack(values, form) or values


def _as_far_as_known(value: float, error: Any) -> float:
    """Return the value to a hundredth of its error's first digit, and to three significant digits at least.

    >>> _as_far_as_known(34313.47, 4900.0), _as_far_as_known(-0.9756463, 0.0365), _as_far_as_known(1.171869, 1000.0)
    (34310.0, -0.9756, 1.17)
    """
    if type(error) is not float or not (0 < error < math.inf and 0 < abs(value) < math.inf):
        return value
    return round(value, 2 - math.floor(math.log10(min(error, abs(value)))))


def _count(value: list[Any]) -> int:
    return sum(len(row) if type(row) is list else 1 for row in value)


def _packed_array(value: Any, exact: bool) -> Any:
    """Return a value as it is written in a row: arrays of some length are packed."""
    if type(value) is not list:
        return value
    numbers = [number for row in value for number in row] if value and type(value[0]) is list else value
    if len(numbers) < _LONG:
        return value
    if exact or len(numbers) < _COUNTS or min(numbers) < 0:
        return pack(value, "f", filled=True) or value
    # Counts of some hundred elements are off by a tenth and more.
    return pack(value, "i" if all(map(float.is_integer, map(float, numbers))) else "h") or value


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
        layout = self._layout_for(tuple(cells), how, values)
        if layout is None:
            return [{"values": values, **({"how": how} if how else {})}]
        row = [cells.get(column) for column in layout.columns]
        line: dict[str, Any] = {"layout": layout.number, "row": layout.cells(row)}
        extra: dict[Column, Any] = {}
        if len(cells) > len(row) - row.count(None):
            extra = {column: value for column, value in cells.items() if column not in layout.known}
            line["values"] = {name: _told(name, values, how) for name in extra if isinstance(name, str)}
        beside = self._beside(layout, values, how, extra)
        if beside:
            line["how"] = beside
        layout.rows += 1
        return [layout.line, line] if layout.rows % self.again == 1 else [line]

    def _layout_for(self, columns: tuple[Column, ...], how: How, values: Mapping[str, Any]) -> _Layout | None:
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
        layout = _Layout(len(self._layouts) + 1, columns, how, values)
        self._layouts.append(layout)
        self._plans[columns] = _Plan(layout, 0)
        return layout

    @staticmethod
    def _beside(layout: _Layout, values: Mapping[str, Any], how: How, extra: Mapping[Column, Any]) -> dict[str, dict[str, Any]]:
        """Return what the row has to say of ``how`` that its layout does not."""
        said: dict[str, dict[str, Any]] = {}
        for name in {**layout.how, **how}:
            if name not in values or name in extra:
                continue
            known, about = layout.how.get(name, {}), how.get(name, {})
            if known != {key: about[key] for key in _STANDING if key in about}:
                said[name] = {key: about.get(key) for key in _STANDING if known.get(key) != about.get(key)}
        for column, value in extra.items():
            if not isinstance(column, str) and column[0] not in extra:
                said.setdefault(column[0], {})[column[1]] = value
        return said


def _told(name: str, values: Mapping[str, Any], how: How) -> Any:
    """Return how a reading that has no column is written."""
    about = how.get(name, {})
    cell = _packed_array(values[name], exact=about.get("kind", "exact") == "exact")
    if not about:
        return cell
    whole, slash, _ = name.partition("/")
    return [cell, _ALIKE if slash and whole in values and about == how.get(whole) else about]


def _length(columns: Sequence[Column]) -> int:
    """Return about how many bytes the names take in a line."""
    return sum(len(column) + 3 if isinstance(column, str) else len(column[0]) + len(column[1]) + 8 for column in columns)


def _waste(layout: _Layout, columns: tuple[Column, ...]) -> int:
    """Return how many bytes of a row are names or empty places."""
    extra = [column for column in columns if column not in layout.known]
    return _length(extra) + _EMPTY * (len(layout.columns) - (len(columns) - len(extra)))


class Definition:
    """A line that defines a layout, as it was read.

    What is wrong with it is raised where it is looked at: ValueError, TypeError, KeyError, AttributeError.
    """

    def __init__(self, line: Mapping[str, Any]) -> None:
        self.line = line

    @cached_property
    def cells(self) -> list[list[Column]]:
        """The columns of each cell of a row."""
        columns = self.line["columns"]
        names = [self._names(column, columns) for column in columns]
        if sum(map(len, names)) > _MOST:
            raise ValueError("a layout has too many columns")
        return [list(self._columns(column, own)) for column, own in zip(columns, names, strict=True)]

    @cached_property
    def groups(self) -> frozenset[int]:
        """The cells that stand for a reading of many layers."""
        return frozenset(place for place, column in enumerate(self.line["columns"]) if isinstance(column, dict))

    @cached_property
    def how(self) -> dict[str, dict[str, Any]]:
        """What is always the same about the readings."""
        how = {name: dict(about) for name, about in self.line.get("how", {}).items()}
        for place in self.groups:
            about = self.line["columns"][place].get("how")
            if about:
                how.update({column: dict(about) for column in self.cells[place] if isinstance(column, str)})
        return how

    @cached_property
    def fixed(self) -> dict[str, list[Any]]:
        """The short arrays that a row only says are there again; a long one would be too much in too few bytes."""
        fixed = dict(self.line["fixed"])
        for value in fixed.values():
            rows = [row if type(row) is list else [row] for row in value]
            if sum(map(len, rows)) >= _LONG or any(type(number) is list for row in rows for number in row):
                raise ValueError("this is no short array")
        return fixed

    @staticmethod
    def _names(column: Any, columns: Sequence[Any]) -> list[str]:
        if not isinstance(column, dict):
            return []
        names = column["names"]
        if isinstance(names, int):
            if not 0 <= names < len(columns):
                raise ValueError("the column with the names is missing")
            names = columns[names]["names"]
        if not isinstance(names, list):
            raise TypeError("a column has no names")
        return names

    @staticmethod
    def _columns(column: Any, names: Sequence[str]) -> Iterator[Column]:
        if isinstance(column, str):
            yield column
        elif isinstance(column, dict):
            of, about = _checked(column["of"]), column.get("about")
            for name in names:
                full = f"{of}/{_checked(name)}"
                yield full if about is None else (full, _checked(about))
        else:
            name, key = column
            yield _checked(name), _checked(key)


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError("a column has no name")
    return name


def whole(line: Mapping[str, Any], layout: Definition) -> dict[str, Any]:
    """Return the line that a row of a layout stands for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: if they are not a row and a layout, or do not fit.
    """
    values: dict[str, Any] = {}
    how: dict[str, dict[str, Any]] = {}
    row = line["row"]
    groups = layout.groups
    unpacked = 0
    for place, (columns, cell) in enumerate(zip(layout.cells, row, strict=True)):
        if cell is None:
            continue
        if type(cell) is str:
            if cell == _AGAIN:
                cell = layout.fixed[str(place)]
            elif cell.startswith("="):
                cell = row[_earlier(cell, place)]
            if is_packed(cell):
                cell, count = unpack(cell)
                unpacked += count
                if unpacked > _MOST:
                    raise ValueError("a row holds too many numbers")
        if place not in groups:
            given: Iterable[tuple[Column, Any]] = ((columns[0], cell),)
        elif columns and isinstance(columns[0], str) and None not in cell:
            values.update(zip(columns, cell, strict=True))  # type: ignore[arg-type]
            continue
        else:
            given = zip(columns, cell, strict=True)
        for column, value in given:
            if value is None:
                continue
            if isinstance(column, str):
                values[column] = value
            else:
                name, key = column
                how.setdefault(name, {})[key] = value
    beside: dict[str, Any] = {}
    alike: list[str] = []
    for name, value in line.get("values", {}).items():
        if type(value) is list and len(value) == 2 and type(value[1]) is dict:
            value, beside[name] = value
        elif type(value) is list and len(value) == 2 and value[1] == _ALIKE:
            value = value[0]
            alike.append(name)
        if is_packed(value):
            value, count = unpack(value)
            unpacked += count
            if unpacked > _MOST:
                raise ValueError("a row holds too many numbers")
        values[name] = value
    for about in (layout.how, beside, line.get("how", {})):
        for name, items in about.items():
            if name in values:
                how.setdefault(name, {}).update(items)
    how.update({name: dict(how.get(name.partition("/")[0], {})) for name in alike})
    how = {name: kept for name, about in how.items() if (kept := {key: about[key] for key in about if about[key] is not None})}
    rest = {key: value for key, value in line.items() if key not in ("layout", "row", "values", "how")}
    return {**rest, "values": values, **({"how": how} if how else {})}


def _earlier(cell: str, place: int) -> int:
    """Return which cell before this one it repeats."""
    first = int(cell[1:])
    if not 0 <= first < place:
        raise ValueError("a cell repeats one that does not come before it")
    return first
