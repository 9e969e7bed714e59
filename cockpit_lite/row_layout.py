"""Row layouts: names, kinds and notes of readings that come at every measured step are written into the log once.

A line that defines a layout, and one that refers to it::

    {"layout": 2, "columns": ["loss", "hessian_trace", ["hessian_trace", "standard_error"]],
     "how": {"hessian_trace": {"kind": "estimated"}}}
    {"step": 8, "time": 1.4, "layout": 2, "row": [0.3, 41, 0.2]}

The second stands for ``{"step": 8, "time": 1.4, "values": {"loss": 0.3, "hessian_trace": 41}, "how": {"hessian_trace": {"kind":
"estimated", "standard_error": 0.2}}}``. A column is a reading, or a number that says how it was got. null: not on this step.
``values`` and ``how`` of the row itself come on top, key by key; null takes a key away.

Since schema 3 the same reading of 5 layers and more, arrays, and single numbers of many digits where there are some fifty of
them (with the zeros beside them), are blocks of one text, the last cell of a row (number_bits.py says how)::

    {"layout": 3, "columns": ["loss"], "text": [{"of": "gsnr", "names": ["0.weight", ...], "how": {"kind": "conditional"}},
        {"of": "ggn_trace", "names": 0}, {"of": "ggn_trace", "about": "standard_error", "names": 0},
        {"array": "grad_hist_1d", "shape": [59]}, {"array": "hist_bins", "value": [-4, 1, 1]}, {"columns": ["cabs", ...]}]}
    {"layout": 3, "remarks": {"0": ["sharpness", {"note": "not converged"}], ...}}
    {"step": 9, "time": 1.5, "layout": 3, "row": [0.3, "z{Yw...."], "how": [0]}

``names`` as a number: those of that block. A block begins with the width of its numbers, 5 bits; 0: none on this step, or in
``values``; 30: those of an earlier block, whose number follows (12 bits); 31: the array is the ``value`` of the definition.
Behind the blocks, 8 bits: how many arrays follow that are parts of one of them, as ``grad_hist_1d/0.bias``, and of the same
``kind``: of each the number of that block (12 bits), of the part's name among all names of layers in the definition (16 bits),
and a block. ``how`` of a row as a list: these remarks.

Significant digits: seven, which is what float32 knows; three of a standard error or residual, and of what has one no more than to
a hundredth of its first digit. In the text single numbers and short arrays have six, longer arrays and what is estimated 4.8,
layers 3.6, and fewer where less is known: 2.4 layers that are estimated or off by 2 % or more, and single errors,
1.5 (off by 3 % at most) the layers' errors and histograms of a few hundred elements. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any

from cockpit_lite.number_bits import GREATEST, LEAST, MOST, Form, bits_of, numbers_as_bits, text_of
from cockpit_lite.row_definition import AS_BEFORE, AS_DEFINED, BEHIND, LONG, NAME, NOTHING, PLACE, Column, kind_of, names_of_parts

How = Mapping[str, Mapping[str, Any]]

#: What is much the same from step to step; everything else in ``how`` is a number.
_STANDING = ("kind", "note")
#: Bytes of a place in a row without a value.
_EMPTY = len("null,")
#: Bytes of names below which a layout gains nothing.
_SHORT = 30
#: Layers from which on a reading of all of them is a block: of fewer a log that can be read by eye is as short.
_MANY = 5
#: Single numbers from which on they are, but for those that are as short written out: nobody reads as many by eye.
_CROWD = 48
_SHORT_NUMBER = 5
#: So many numbers that are not exact, none of them negative, are a density, or a histogram where they are whole.
_COUNTS = 50
#: A number of 2.4 digits is off by 0.4 % at most: little beside a standard error of so much of the value.
_UNSURE = 0.02
#: Whole numbers up to this are exact among single ones of six digits.
_WHOLE = 2**20
#: Kinds that are known by samples only.
_SAMPLED = ("estimated", "gauss-newton", "sub-batch")
#: As run_log.py writes them.
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
#: More remarks than these are written out.
_REMARKS = 200


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


@dataclass(frozen=True)
class _Block:
    """Numbers of a row that its text holds.

    Attributes:
        places: Their columns.
        line: What defines it.
        form: What the numbers may be off by; of an array it depends on them.
        errors: Place of a column -> that of what it may be off by, of a reading of many layers.
        count: How many numbers.
        value: A short array of the first row, that is the same again and again.
    """

    places: Sequence[int]
    line: Mapping[str, Any]
    form: Form
    count: int
    errors: range | None = None
    value: list[Any] | None = None

    @property
    def is_array(self) -> bool:
        """Whether it is one column, an array."""
        return "array" in self.line

    def bits(self, row: Sequence[Any], is_exact: bool) -> tuple[str | None, list[int]]:
        """Return the block, None if there is none, and the places of what it has no room for."""
        values = [row[place] for place in self.places]
        there = [place for place, value in zip(self.places, values, strict=True) if value is not None]
        if not there:
            return None, []
        if self.is_array:
            value = values[0]
            if value == self.value:
                return bits_of(AS_DEFINED, 5), []
            flat = _flat(value)
            if flat is None or _shape(value) != self.line.get("shape", None if self.value is None else _shape(self.value)):
                return None, there
            bits = numbers_as_bits(flat, _form_of(flat, is_exact))
            return bits, there if bits is None else []
        unfit = [place for place in there if not _fits(row[place])] if "columns" in self.line else []
        bits = None if unfit else numbers_as_bits(values, self._form(values, row))
        if bits is None:
            unfit = [place for place in there if not _fits(row[place])]
            values = [None if place in unfit else row[place] for place in self.places]
            bits = numbers_as_bits(values, self._form(values, row))
        return bits, there if bits is None else unfit

    def _form(self, values: Sequence[Any], row: Sequence[Any]) -> Form:
        if self.errors is None:
            return self.form
        errors = row[self.errors.start : self.errors.stop]
        known = [
            (value, error) for value, error in zip(values, errors, strict=True) if type(value) is float and type(error) is float
        ]
        return "h" if len(known) == len(values) and all(error >= _UNSURE * abs(value) for value, error in known) else "g"


class _Layout:
    """Columns, and what is always the same about the readings in them."""

    def __init__(self, number: int, columns: Sequence[Column], how: How, cells: Mapping[Column, Any] = MappingProxyType({})):
        self.number = number
        self.columns = tuple(columns)
        self.known = frozenset(columns)
        standing = {name: {key: about[key] for key in _STANDING if key in about} for name, about in how.items()}
        self.how = {name: about for name, about in standing.items() if about}
        self.rows = 0
        #: What was said of a reading on some rows -> its number.
        self.remarks: dict[tuple[str, Any], int] = {}
        values = [cells.get(column) for column in self.columns]
        self._blocks = self._blocks_of(values)
        inside = {place for block in self._blocks for place in block.places}
        self._cells = [place for place in range(len(self.columns)) if place not in inside]
        places = {column: place for place, column in enumerate(self.columns)}
        #: Place of a reading -> that of what it may be off by.
        self._errors = {
            places[name]: place for (name, _), place in ((c, p) for c, p in places.items() if type(c) is tuple) if name in places
        }
        self._arrays = {self.columns[block.places[0]]: number for number, block in enumerate(self._blocks) if block.is_array}

    def _blocks_of(self, values: Sequence[Any]) -> list[_Block]:
        columns = self.columns
        blocks: list[_Block] = []
        spelled: dict[tuple[str, ...], int] = {}
        inside: set[int] = set()
        for group in _groups(columns):
            places = range(group.start, group.end)
            inside.update(places)
            line: dict[str, Any] = {"of": group.of, "names": spelled.get(group.names, list(group.names))}
            spelled.setdefault(group.names, len(blocks))
            form: Form = "i"
            if group.about:
                line["about"] = group.about
            else:
                common = [self.how.get(str(columns[place])) for place in places]
                form = "h" if group.errors is None and all(about and about.get("kind") in _SAMPLED for about in common) else "g"
                if common[0] and all(about == common[0] for about in common):
                    line["how"] = common[0]
            errors = None if group.errors is None else range(group.errors, group.errors + len(places))
            blocks.append(_Block(places, line, form, len(places), errors))
        for place, (column, value) in enumerate(zip(columns, values, strict=True)):
            if place not in inside and type(column) is str and type(value) is list:
                flat = _flat(value)
                if flat is not None and numbers_as_bits(flat, "e") is not None:
                    inside.add(place)
                    fixed = {"value": value} if len(flat) < LONG else {"shape": _shape(value)}
                    blocks.append(_Block([place], {"array": column, **fixed}, "f", len(flat), value=fixed.get("value")))
        fitting = [place for place, value in enumerate(values) if place not in inside and _fits(value)]
        if sum(_is_long(values[place]) for place in fitting) >= _CROWD:
            single = [place for place in fitting if values[place] == 0 or _is_long(values[place])]  # a zero takes a bit
            kinds: dict[Form, list[int]] = {"e": [], "f": [], "h": []}
            for place in single:
                column = columns[place]
                is_sampled = type(column) is str and self.how.get(column, {}).get("kind") in _SAMPLED
                kinds["h" if type(column) is not str else "f" if is_sampled else "e"].append(place)
            for form, chosen in kinds.items():
                if chosen:
                    names = [column if type(column) is str else list(column) for column in map(columns.__getitem__, chosen)]
                    blocks.append(_Block(chosen, {"columns": names}, form, len(chosen)))
        return blocks

    @cached_property
    def names(self) -> dict[str, int]:
        """Names of layers and parameters, numbered."""
        columns = [self._cells, *(block.places for block in self._blocks)]
        found = names_of_parts([self.columns[place] for place in places] for places in columns)
        return {name: number for number, name in enumerate(found[: 1 << NAME])}

    @property
    def line(self) -> dict[str, Any]:
        """What defines it in the log."""
        columns = [self.columns[place] for place in self._cells]
        text = [block.line for block in self._blocks]
        said = {self.columns[place] for block in self._blocks if "how" in block.line for place in block.places}
        how = {name: about for name, about in self.how.items() if name not in said}
        line = {"layout": self.number, "columns": columns}
        return {**line, **({"text": text} if text else {}), **({"how": how} if how else {})}

    def cells(self, row: Sequence[Any], parts: Mapping[str, Any]) -> tuple[list[Any], list[int], list[str]]:
        """Return what is written of a row with a value for each column.

        Args:
            row: The values.
            parts: Arrays that are parts of some of its arrays.

        Returns:
            The cells; the places of what they have no room for; and which of the parts they have no room for.
        """
        cells = [self._cell(place, row) for place in self._cells]
        if not self._blocks:
            return cells, [], list(parts)
        written: list[str] = []
        said: dict[tuple[str, int], int] = {}
        left: list[int] = []
        for number, block in enumerate(self._blocks):
            bits, unfit = block.bits(row, self._is_exact(block))
            left += unfit
            if bits is None:
                written.append(bits_of(NOTHING, 5))
                continue
            first = said.setdefault((bits, block.count), number)
            if first != number and len(bits) > 5 + PLACE and first < 1 << PLACE:
                written += bits_of(AS_BEFORE, 5), bits_of(first, PLACE)
            else:
                written.append(bits)
        behind = {name: found for name, value in parts.items() if (found := self._behind(name, value)) is not None}
        chosen = list(behind)[: (1 << BEHIND) - 1]
        written.append(bits_of(len(chosen), BEHIND))
        written += [behind[name] for name in chosen]
        return [*cells, text_of("".join(written))], left, [name for name in parts if name not in chosen]

    def _behind(self, name: str, value: Any) -> str | None:
        """Return an array that is a part of one that has a block, if there is room for it."""
        of, _, part = name.partition("/")
        number = self._arrays.get(of)
        flat = _flat(value)
        if number is None or number >= 1 << PLACE or part not in self.names or flat is None:
            return None
        block = self._blocks[number]
        bits = numbers_as_bits(flat, _form_of(flat, self._is_exact(block))) if block.line.get("shape") == _shape(value) else None
        return None if bits is None else bits_of(number, PLACE) + bits_of(self.names[part], NAME) + bits

    def _is_exact(self, block: _Block) -> bool:
        column = self.columns[block.places[0]]
        return type(column) is str and self.how.get(column, {}).get("kind", "exact") == "exact"

    def _cell(self, place: int, row: Sequence[Any]) -> Any:
        column, value = self.columns[place], row[place]
        if type(value) is not float:
            return value
        if type(column) is not str:
            return float(f"{value:.3g}")
        return _as_far_as_known(value, row[self._errors[place]]) if place in self._errors else value


def _as_far_as_known(value: float, error: Any) -> float:
    """Return the value to a hundredth of its error's first digit, and to three significant digits at least.

    >>> _as_far_as_known(34313.47, 4900.0), _as_far_as_known(-0.9756463, 0.0365), _as_far_as_known(1.171869, 1000.0)
    (34310.0, -0.9756, 1.17)
    """
    if type(error) is not float or not (0 < error < math.inf and 0 < abs(value) < math.inf):
        return value
    return round(value, 2 - math.floor(math.log10(min(error, abs(value)))))


def _fits(value: Any) -> bool:
    """Return whether a single number is as good in a block."""
    kind = type(value)
    if kind is float:
        return not 0 < abs(value) <= LEAST and not GREATEST <= abs(value) < math.inf
    return value is None or (kind is int and abs(value) <= _WHOLE) or (kind is str and value in _NOT_FINITE)


def _is_long(value: Any) -> bool:
    """Return whether a single number takes more room when it is written out, unlike 0.01 or 32."""
    return type(value) is float and (len(f"{value:.7g}") > _SHORT_NUMBER or not math.isfinite(value))


def _shape(value: Any) -> list[int]:
    """Return the shape of nested lists that are an array."""
    shape = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0]
    return shape


def _flat(value: Any) -> list[Any] | None:
    """Return the numbers of nested lists, or None if they are no array, or not of a size for a block."""
    if type(value) is not list:
        return None
    flat = [value]
    for length in _shape(value) if value else ():
        if any(type(row) is not list or len(row) != length for row in flat):
            return None
        flat = [number for row in flat for number in row]
    return flat if value and len(flat) <= MOST and list not in set(map(type, flat)) else None


def _form_of(numbers: Sequence[Any], is_exact: bool) -> Form:
    """Return how precisely the numbers of an array are written."""
    if len(numbers) < LONG:
        return "e"
    if is_exact or not set(map(type, numbers)) <= {float, int}:
        return "f"
    whole = map(float.is_integer, map(float, numbers))
    if len(numbers) < _COUNTS or min(numbers) < 0:
        return "f" if any(whole) else "g"  # places in a batch, say, and what goes with them
    return "i" if all(whole) else "h"  # counts of some hundred elements are off by a tenth and more


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
        """Return what to write for a row, without its step and time: maybe definitions, and the row."""
        cells: dict[Column, Any] = {}
        cells.update(values.items())
        parts: dict[str, Any] = {}
        for name, value in values.items():
            if type(value) is list and "/" in name:
                of = name.partition("/")[0]
                if type(values.get(of)) is list and how.get(name, {}) == kind_of(how.get(of, {})):
                    parts[name] = cells.pop(name)
        for name, about in how.items():
            for key, value in about.items():
                if key not in _STANDING and name not in parts:
                    cells[name, key] = value
        layout = self._layout_for(tuple(cells), how, cells)
        if layout is None:
            return [{"values": values, **({"how": how} if how else {})}]
        row = [cells.get(column) for column in layout.columns]
        written, places, names = layout.cells(row, parts)
        line: dict[str, Any] = {"layout": layout.number, "row": written}
        extra: dict[Column, Any] = {name: parts[name] for name in names}
        if len(cells) > len(row) - row.count(None):
            extra.update((column, value) for column, value in cells.items() if column not in layout.known)
        left = {layout.columns[place]: row[place] for place in places}
        if extra or left:
            line["values"] = {name: value for name, value in left.items() if isinstance(name, str)}
            line["values"].update((name, _told(name, values, how)) for name in extra if isinstance(name, str))
        beside = self._beside(layout, values, how, extra, left)
        beside = {name: about for name, about in beside.items() if name not in parts}
        before = len(layout.remarks)
        if beside:
            line["how"] = _remarked(layout, beside)
        layout.rows += 1
        is_new = layout.rows % self.again == 1
        remarks = {
            str(number): [name, dict(about)] for (name, about), number in layout.remarks.items() if is_new or number >= before
        }
        return [
            *([layout.line] if is_new else []),
            *([{"layout": layout.number, "remarks": remarks}] if remarks else []),
            line,
        ]

    def _layout_for(self, columns: tuple[Column, ...], how: How, cells: Mapping[Column, Any]) -> _Layout | None:
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
        layout = _Layout(len(self._layouts) + 1, columns, how, cells)
        self._layouts.append(layout)
        self._plans[columns] = _Plan(layout, 0)
        return layout

    @staticmethod
    def _beside(
        layout: _Layout, values: Mapping[str, Any], how: How, extra: Mapping[Column, Any], left: Mapping[Column, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return what the row has to say of ``how`` that its layout does not."""
        said: dict[str, dict[str, Any]] = {}
        for name in {**layout.how, **how}:
            if name not in values or name in extra:
                continue
            known, about = layout.how.get(name, {}), how.get(name, {})
            if known != {key: about[key] for key in _STANDING if key in about}:
                said[name] = {key: about.get(key) for key in _STANDING if known.get(key) != about.get(key)}
        for column, value in (*extra.items(), *left.items()):
            if not isinstance(column, str) and column[0] not in extra:
                said.setdefault(column[0], {})[column[1]] = value
        return said


def _remarked(layout: _Layout, beside: dict[str, dict[str, Any]]) -> Any:
    """Return what a row says of ``how`` as numbers of remarks; as it is where it is more than words."""
    remarks = [(name, tuple(about.items())) for name, about in beside.items()]
    if any(type(value) not in (str, type(None)) for _, about in remarks for _, value in about):
        return beside
    if len(layout.remarks) + len(remarks) > _REMARKS and not layout.remarks.keys() >= set(remarks):
        return beside
    return [layout.remarks.setdefault(remark, len(layout.remarks)) for remark in remarks]


def _told(name: str, values: Mapping[str, Any], how: How) -> Any:
    """Return how a reading that has no column is written."""
    return [values[name], how[name]] if how.get(name) else values[name]


def _length(columns: Sequence[Column]) -> int:
    """Return about how many bytes the names take in a line."""
    return sum(len(column) + 3 if isinstance(column, str) else len(column[0]) + len(column[1]) + 8 for column in columns)


def _waste(layout: _Layout, columns: tuple[Column, ...]) -> int:
    """Return how many bytes of a row are names or empty places."""
    extra = [column for column in columns if column not in layout.known]
    return _length(extra) + _EMPTY * (len(layout.columns) - (len(columns) - len(extra)))
