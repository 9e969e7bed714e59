"""Packed numbers: many numbers in one text of a log line, at one to four characters a number, not eleven. Knows no torch.

    "62f<base64>"        62 numbers: of each the first 24 bits of its float32, rounded; 4.8 significant digits
    "62g<base64>"        the first 20 bits; 3.6 significant digits, off by 0.03 % at most
    "62h<base64>"        the first 16 bits; 2.4 significant digits, off by 0.4 % at most: for what sampling leaves less of
    "62l14:<base64>"     62 levels of 14 bits: level q stands for low 2^(step q); before them low and step, 24 bits of a float32
    "62s14:<base64>"     the same with a bit before each level, 1 where the number is negative
    "13,25zh<base64>"    a 13 x 25 array, zeros left out: a bit for every number, 1 where it is not zero, then those that are not

Bits are in order, the highest first; what is missing to a whole byte is zero. Levels have as many bits as it takes to be off by
no more than the form that they are written for; numbers that are alike in size take few. Infinities are never packed, so that
they stay written out, and NaN only where it fills up an array.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from operator import ne
from typing import Any, Literal

#: What the numbers may be off by: "f", "g" and "h" as above, "i" by 3 % at most.
Form = Literal["f", "g", "h", "i"]

#: Fewer are as short when they are written out.
FEWEST = 4
#: Where zeros are left out, a short text stands for many numbers, and whoever reads it must not run out of memory.
MOST = 4096

#: Form -> hexadecimal digits of a number.
_DIGITS = {"f": 6, "g": 5, "h": 4}
#: Form -> what levels may be off by, relative.
ERRORS: dict[Form, float] = {"g": 2**-12, "h": 2**-8, "i": 2**-5}
_SHAPE_AND_FORM = re.compile(r"(\d{1,6}(?:,\d{1,6})*)(z?)([fgh]|[ls]\d{1,2}:)", re.ASCII)
_LEAST, _GREATEST = 1.2e-38, 3e38  # what float32 knows in full
_MOST_BITS = 24  # of a level
_NARROW = 8  # bits of levels whose digits are kept
_HEAD = 48  # bits before the levels


def pack(values: Sequence[Any], form: Form, filled: bool = False) -> str | None:
    """Return (nested) lists of numbers as a text, or None if they cannot be packed.

    Args:
        values: The numbers.
        form: What they may be off by.
        filled: Whether NaN may be among them, to fill up an array.

    >>> pack([0.1, 0.2, 0.3, 0.4, 0.5], "f")
    '5fPczNPkzNPpmaPszNPwAA'
    >>> pack([0.1, 0.2, 0.3, 0.4, 0.5] * 5, "i")
    '25l5:PczMPZlnA2u/gbXfwNrv4G138Da7+A'
    >>> pack([0.1, float("nan"), 0.3, 0.4, 0.5], "f") is None
    True
    """
    shape: list[int] = []
    flat: Sequence[Any] = values
    while True:
        shape.append(len(flat) // math.prod(shape))
        kinds = set(map(type, flat))
        if kinds != {list}:
            break
        if len({len(row) for row in flat}) > 1:
            return None
        flat = [number for row in flat for number in row]
    if not FEWEST <= len(flat) <= MOST or not kinds <= {float, int}:
        return None
    present = flat if all(flat) else list(filter(None, flat))
    holes = any(map(ne, present, present))  # NaN
    if holes:
        if not filled:
            return None
        flat = [math.nan if value != value else value for value in flat]  # one of them has bits of its own
    sizes = [abs(value) for value in present if value == value] if holes else list(map(abs, present))
    if sizes and not (min(sizes) > _LEAST and max(sizes) < _GREATEST):
        return None
    name = ",".join(map(str, shape))
    if form == "f":
        return name + _truncated(flat, "f")
    text = None if holes else _levels(present, sizes, form)
    if text is None:
        return name + _truncated(flat, "h" if form == "i" else form)
    kind, bits = text
    mask = "" if present is flat else "".join(map("01".__getitem__, map(bool, flat)))
    return f"{name}{'z' if mask else ''}{kind}:{_base64(_hexadecimal(mask) + _hexadecimal(bits) if mask else _hexadecimal(bits))}"


def _truncated(flat: Sequence[Any], form: Literal["f", "g", "h"]) -> str:
    """Return the form and the first bits of each number, zeros left out where that is shorter."""
    digits = _DIGITS[form]
    cut = 4 * (8 - digits)
    bits = struct.unpack(f">{len(flat)}I", struct.pack(f">{len(flat)}f", *flat))
    half = 1 << (cut - 1)
    numbers = [number + half >> cut for number in bits]
    zeros = numbers.count(0)
    mask = ""
    if zeros * digits > len(numbers) // 4 + 2:
        mask = _hexadecimal("".join(["1" if number else "0" for number in numbers]))
        numbers = [number for number in numbers if number]
    return ("z" if mask else "") + form + _base64(mask + f"%0{digits}x" * len(numbers) % tuple(numbers))


def _levels(numbers: Sequence[Any], sizes: Sequence[Any], form: Form) -> tuple[str, str] | None:
    """Return the form of levels and their bits, or None where truncated numbers are as short; ``sizes`` are magnitudes."""
    if not numbers:
        return None
    low = _first_bits(min(sizes), 0)
    steps = math.log2(max(sizes) / _from_bits(low))  # a little more than the range, since low was rounded towards zero
    width = max(math.ceil(steps * math.log(2) / (1.99 * ERRORS[form])).bit_length(), 1)
    signed = min(numbers) < 0
    if width > _MOST_BITS or _HEAD + (width + signed) * len(numbers) >= 4 * _DIGITS["h" if form == "i" else form] * len(numbers):
        return None
    step_bits = _first_bits(steps / ((1 << width) - 1), 0xFF)
    start, step = _from_bits(low), max(_from_bits(step_bits), 1e-30)
    levels = [round(math.log2(size / start) / step) for size in sizes]
    parts = list(map(_digits_of(width).__getitem__, levels)) if width <= _NARROW else [format(q, f"0{width}b") for q in levels]
    if signed:
        parts = [("1" if number < 0 else "0") + part for number, part in zip(numbers, parts, strict=True)]
    return f"{'s' if signed else 'l'}{width}", f"{low:024b}{step_bits:024b}{''.join(parts)}"


@lru_cache(maxsize=_NARROW)
def _digits_of(width: int) -> list[str]:
    """Return the binary digits of all levels of so many bits: to look them up takes a third of the time to write them."""
    return [format(level, f"0{width}b") for level in range(1 << width)]


def _first_bits(value: float, rounding: int) -> int:
    """Return the first 24 bits of a float32 that is not negative; 0xFF rounds up."""
    return (struct.unpack(">I", struct.pack(">f", value))[0] + rounding) >> 8


def _from_bits(bits: int) -> float:
    return float(struct.unpack(">f", struct.pack(">I", bits << 8))[0])


def _base64(digits: str) -> str:
    """Return hexadecimal digits in two thirds of their length."""
    return base64.b64encode(bytes.fromhex(digits + "0" * (len(digits) % 2))).decode().rstrip("=")


def unpack(text: str) -> tuple[list[Any], int]:
    """Undo :func:`pack`, up to rounding; return the (nested) list and how many numbers it holds.

    >>> unpack("4fP4AAQAAAQEAAQIAA")
    ([1.0, 2.0, 3.0, 4.0], 4)

    Raises:
        ValueError: if the text does not hold the numbers that it promises, or too many.
    """
    found = _SHAPE_AND_FORM.match(text)
    if found is None:
        raise ValueError("this is no text of packed numbers")
    shape = [int(length) for length in found[1].split(",")]
    count = math.prod(shape)
    if not 0 < count <= MOST:
        raise ValueError(f"{count} numbers are not packed into one text")
    data = base64.b64decode(text[found.end() :] + "=" * (-(len(text) - found.end()) % 4), validate=True).hex()
    mask, there = "", count
    if found[2]:
        length = -(-count // 4)
        if len(data) < length:
            raise ValueError("there are fewer numbers than promised")
        mask = _bits(data[:length])[:count]
        data, there = data[length:], mask.count("1")
    form = found[3]
    numbers = _read_levels(data, there, int(form[1:-1]), form[0] == "s") if ":" in form else _read(data, there, _DIGITS[form])
    if mask:
        kept = iter(numbers)
        numbers = [next(kept) if bit == "1" else 0.0 for bit in mask]
    for length in reversed(shape[1:]):
        numbers = [numbers[start : start + length] for start in range(0, len(numbers), length)]
    return numbers, count


def _read(data: str, count: int, digits: int) -> list[Any]:
    """Undo :func:`_truncated`, of hexadecimal digits."""
    if len(data) - count * digits not in (0, 1):
        raise ValueError("there are more or fewer numbers than promised")
    rest = "0" * (8 - digits)
    words = "".join([data[start : start + digits] + rest for start in range(0, count * digits, digits)])
    return list(struct.unpack(f">{count}f", bytes.fromhex(words)))


def _read_levels(data: str, count: int, width: int, signed: bool) -> list[Any]:
    """Undo :func:`_levels`, of hexadecimal digits."""
    each = width + signed
    if not 0 < width <= _MOST_BITS or not 0 <= 4 * len(data) - _HEAD - each * count < 8:
        raise ValueError("there are more or fewer numbers than promised")
    bits = _bits(data)
    low, step = _from_bits(int(bits[:24], 2)), _from_bits(int(bits[24:_HEAD], 2))
    if not (0 < low < math.inf and 0 <= step * (1 << width) < 512):
        raise ValueError("there are no such levels")
    places = range(_HEAD, _HEAD + each * count, each)
    numbers = [low * 2.0 ** (step * int(bits[place + signed : place + each], 2)) for place in places]
    return (
        [-number if bits[place] == "1" else number for place, number in zip(places, numbers, strict=True)] if signed else numbers
    )


def _bits(digits: str) -> str:
    """Return hexadecimal digits as bits."""
    return format(int(digits, 16), f"0{4 * len(digits)}b") if digits else ""


def _hexadecimal(bits: str) -> str:
    """Return bits as hexadecimal digits."""
    length = -(-len(bits) // 4)
    return format(int(bits.ljust(4 * length, "0"), 2), f"0{length}x")


def is_packed(value: Any) -> bool:
    """Return whether a cell of a row is a text of packed numbers; the other texts there are "NaN" and the infinities."""
    return type(value) is str and value[:1].isdigit()
