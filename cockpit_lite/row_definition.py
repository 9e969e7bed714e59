"""Row definitions: what a row of the log stands for, by the line that defines its layout. Knows no torch.

How both are written, and what they mean: row_layout.py. Here is also read what schema 2 wrote into rows: readings of
many layers and arrays as a text each (packed_numbers.py) among the cells, "=1" for the same as cell 1, "=" for a short array of
the layout's ``fixed``; and in ``values`` pairs of a value and how it was got, "/" where that is as of what it is a part of.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from cockpit_lite.number_bits import MOST, BitReader
from cockpit_lite.packed_numbers import is_packed, unpack

#: A reading, or a number that says how it was got: name and key.
Column = str | tuple[str, str]

#: What stands for the width of a block's numbers: none here, those of an earlier block, those of the definition.
NOTHING, AS_BEFORE, AS_DEFINED = 0, 30, 31
#: Bits of an earlier block's number, of how many arrays come behind, and of the number of a name.
PLACE, BEHIND, NAME = 12, 8, 16
#: Numbers of an array from which on a definition does not hold it: a short text would stand for many.
LONG = 7
#: Columns of a layout, and numbers of a row, at most: a short text stands for many of them.
_MOST = 2**21


def names_of_parts(columns: Iterable[Iterable[Column]]) -> list[str]:
    """Return the names of layers and parameters among columns, in order of their first."""
    names = (column.partition("/")[2] for cell in columns for column in cell if isinstance(column, str))
    return list(dict.fromkeys(filter(None, names)))


def kind_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kind alone of what is said of how a reading was got."""
    return {"kind": about["kind"]} if "kind" in about else {}


class Definition:
    """A line that defines a layout, as it was read.

    What is wrong with it is raised where it is looked at: ValueError, TypeError, KeyError, AttributeError.
    """

    def __init__(self, line: Mapping[str, Any]) -> None:
        self.line = line
        self._remarks: dict[int, tuple[str, dict[str, Any]]] = {}

    def remark(self, line: Mapping[str, Any]) -> None:
        """Take a line that says how readings were got on some rows."""
        self._remarks.update((int(number), (_checked(name), dict(about))) for number, (name, about) in line["remarks"].items())

    def remarks(self, numbers: Iterable[Any]) -> dict[str, dict[str, Any]]:
        """Return what some remarks say."""
        found: dict[str, dict[str, Any]] = {}
        for number in numbers:
            name, about = self._remarks[number]
            found[name] = dict(about)
        return found

    @cached_property
    def cells(self) -> list[list[Column]]:
        """The columns of each cell of a row."""
        return self._cells(self.line["columns"])

    @cached_property
    def blocks(self) -> list[list[Column]]:
        """The columns of each block of a row's text; an array has one."""
        blocks = self.line.get("text", [])
        if not all(isinstance(block, dict) for block in blocks):
            raise TypeError("this is no block")
        return self._cells(blocks)

    @cached_property
    def arrays(self) -> dict[int, tuple[list[int], Any]]:
        """Of the blocks that are arrays the shape, and what is in the definition of it, or None."""
        found: dict[int, tuple[list[int], Any]] = {}
        for place, block in enumerate(self.line["text"]):
            if "array" in block:
                value = block.get("value")
                shape = block["shape"] if value is None else _shape(value)
                if not shape or not all(type(length) is int and length > 0 for length in shape):
                    raise ValueError("an array has no shape")
                if not 0 < math.prod(shape) <= (MOST if value is None else LONG - 1):
                    raise ValueError("an array is too long")
                found[place] = shape, value
        if sum(math.prod(shape) for shape, _ in found.values()) > _MOST:
            raise ValueError("a layout has too many numbers")
        return found

    @cached_property
    def names(self) -> list[str]:
        """The names of layers and parameters."""
        return names_of_parts([*self.cells, *self.blocks])

    @cached_property
    def groups(self) -> frozenset[int]:
        """The cells that stand for a reading of many layers."""
        return frozenset(place for place, column in enumerate(self.line["columns"]) if isinstance(column, dict))

    @cached_property
    def how(self) -> dict[str, dict[str, Any]]:
        """What is always the same about the readings."""
        how = {name: dict(about) for name, about in self.line.get("how", {}).items()}
        for columns, cells in ((self.line["columns"], self.cells), (self.line.get("text", []), self.blocks)):
            for column, own in zip(columns, cells, strict=True):
                if isinstance(column, dict) and column.get("how"):
                    how.update({name: dict(column["how"]) for name in own if isinstance(name, str)})
        return how

    @cached_property
    def fixed(self) -> dict[str, list[Any]]:
        """The short arrays that a row of schema 2 only says are there again."""
        fixed = dict(self.line["fixed"])
        for value in fixed.values():
            if not math.prod(_shape(value)) < LONG:
                raise ValueError("this is no short array")
        return fixed

    def _cells(self, columns: Sequence[Any]) -> list[list[Column]]:
        names = [self._names(column, columns) for column in columns]
        if sum(map(len, names)) > _MOST:
            raise ValueError("a layout has too many columns")
        return [list(self._columns(column, own)) for column, own in zip(columns, names, strict=True)]

    @staticmethod
    def _names(column: Any, columns: Sequence[Any]) -> list[Any]:
        if not isinstance(column, dict) or "array" in column:
            return []
        names = column.get("columns", column.get("names"))
        if isinstance(names, int):
            if not 0 <= names < len(columns):
                raise ValueError("the column with the names is missing")
            names = columns[names]["names"]
        if not isinstance(names, list):
            raise TypeError("a column has no names")
        return names

    @staticmethod
    def _columns(column: Any, names: Sequence[Any]) -> Iterator[Column]:
        if isinstance(column, str):
            yield column
        elif isinstance(column, dict) and "array" in column:
            yield _checked(column["array"])
        elif isinstance(column, dict) and "of" not in column:
            for one in names:
                yield from Definition._columns(one if isinstance(one, str) else list(one), ())
        elif isinstance(column, dict):
            of, about = _checked(column["of"]), column.get("about")
            for name in names:
                full = f"{of}/{_checked(name)}"
                yield full if about is None else (full, _checked(about))
        else:
            name, key = column
            yield _checked(name), _checked(key)


def define(line: Mapping[str, Any], layouts: dict[int, Definition]) -> None:
    """Take a line that defines a layout, or remarks of one.

    Raises:
        LookupError, TypeError, ValueError, AttributeError: if it does neither.
    """
    number = line["layout"]
    if not isinstance(number, int):
        raise TypeError("a layout has no number")
    if "remarks" in line:
        layouts[number].remark(line)
    elif "columns" in line:
        layouts[number] = Definition(line)
    else:
        raise ValueError("this defines nothing")


def _checked(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError("a column has no name")
    return name


def _shape(value: Any) -> list[int]:
    """Return the shape of nested lists; ValueError if they have none, or hold no numbers."""
    shape: list[int] = []
    flat: list[Any] = [value]
    while isinstance(flat[0], list):
        if len({len(row) for row in flat}) > 1 or not flat[0] or len(shape) > 9:
            raise ValueError("this is no array")
        shape.append(len(flat[0]))
        flat = [number for row in flat for number in row]
    if not shape or any(isinstance(number, list) for number in flat):
        raise ValueError("this is no array")
    return shape


def nested(numbers: list[Any], shape: Sequence[int]) -> list[Any]:
    """Return a flat list as an array.

    >>> nested([1, 2, 3, 4], [2, 2])
    [[1, 2], [3, 4]]
    """
    for length in reversed(shape[1:]):
        numbers = [numbers[start : start + length] for start in range(0, len(numbers), length)]
    return numbers


def whole(line: Mapping[str, Any], layout: Definition) -> dict[str, Any]:
    """Return the line that a row of a layout stands for.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, IndexError: if they are not a row and a layout, or do not fit.
    """
    values: dict[str, Any] = {}
    how: dict[str, dict[str, Any]] = {}
    row = line["row"]
    if layout.blocks:
        *row, text = row
    _take_cells(row, layout, values, how)
    behind = _take_text(text, layout, values, how) if layout.blocks else []
    beside: dict[str, dict[str, Any]] = {}
    alike = _take_values(line.get("values", {}), values, beside)
    said = line.get("how", {})
    for about in (layout.how, beside, layout.remarks(said) if isinstance(said, list) else said):
        for name, items in about.items():
            if name in values:
                how.setdefault(name, {}).update(items)
    how.update({name: dict(how.get(name.partition("/")[0], {})) for name in alike})
    how.update({name: kind_of(how.get(name.partition("/")[0], {})) for name in behind})
    how = {name: kept for name, about in how.items() if (kept := {key: about[key] for key in about if about[key] is not None})}
    rest = {key: value for key, value in line.items() if key not in ("layout", "row", "values", "how")}
    return {**rest, "values": values, **({"how": how} if how else {})}


def _take_text(text: Any, layout: Definition, values: dict[str, Any], how: dict[str, dict[str, Any]]) -> list[str]:
    """Take the text of a row; return the arrays behind its blocks."""
    reader = BitReader(text)
    read: list[list[Any]] = []
    for place, columns in enumerate(layout.blocks):
        shape, value = layout.arrays.get(place, (None, None))
        count = len(columns) if shape is None else math.prod(shape)
        width = reader.number(5)
        if width == AS_DEFINED and value is not None:
            values[columns[0]] = value  # type: ignore[index]
            read.append([])
            continue
        if width == AS_BEFORE:
            numbers = read[reader.number(PLACE)]
            if len(numbers) != count:
                raise ValueError("a block repeats one that is not as long")
        else:
            numbers = [] if width == NOTHING else reader.numbers(count, width)
        read.append(numbers)
        if shape is None:
            _take(zip(columns, numbers, strict=False), values, how)
        elif numbers:
            values[columns[0]] = nested(numbers, shape)  # type: ignore[index]
    behind = []
    for _ in range(reader.number(BEHIND)):
        place, name = reader.number(PLACE), layout.names[reader.number(NAME)]
        shape, _ = layout.arrays[place]
        behind.append(f"{layout.blocks[place][0]}/{name}")
        values[behind[-1]] = nested(reader.numbers(math.prod(shape), reader.number(5)), shape)
    reader.end()
    return behind


def _take(given: Iterable[tuple[Column, Any]], values: dict[str, Any], how: dict[str, dict[str, Any]]) -> None:
    for column, value in given:
        if value is None:
            continue
        if isinstance(column, str):
            values[column] = value
        else:
            name, key = column
            how.setdefault(name, {})[key] = value


def _take_cells(row: Sequence[Any], layout: Definition, values: dict[str, Any], how: dict[str, dict[str, Any]]) -> None:
    groups = layout.groups
    unpacked = 0
    for place, (columns, cell) in enumerate(zip(layout.cells, row, strict=True)):
        if cell is None:
            continue
        if type(cell) is str:
            if cell == "=":
                cell = layout.fixed[str(place)]
            elif cell.startswith("="):
                cell = row[_earlier(cell, place)]
            if is_packed(cell):
                cell, count = unpack(cell)
                unpacked += count
                if unpacked > _MOST:
                    raise ValueError("a row holds too many numbers")
        if place not in groups:
            _take(((columns[0], cell),), values, how)
        elif columns and isinstance(columns[0], str) and None not in cell:
            values.update(zip(columns, cell, strict=True))  # type: ignore[arg-type]
        else:
            _take(zip(columns, cell, strict=True), values, how)


def _take_values(given: Mapping[str, Any], values: dict[str, Any], beside: dict[str, dict[str, Any]]) -> list[str]:
    """Take what is written by name; return what was got as that which it is a part of."""
    alike = []
    unpacked = 0
    for name, value in given.items():
        if type(value) is list and len(value) == 2 and type(value[1]) is dict:
            value, beside[name] = value
        elif type(value) is list and len(value) == 2 and value[1] == "/":
            value = value[0]
            alike.append(name)
        if is_packed(value):
            value, count = unpack(value)
            unpacked += count
            if unpacked > _MOST:
                raise ValueError("a row holds too many numbers")
        values[name] = value
    return alike


def _earlier(cell: str, place: int) -> int:
    """Return which cell before this one it repeats."""
    first = int(cell[1:])
    if not 0 <= first < place:
        raise ValueError("a cell repeats one that does not come before it")
    return first
