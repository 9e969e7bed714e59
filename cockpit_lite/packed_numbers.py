"""Packed numbers: many numbers in one text, as schema 2 has them in log lines; what is written now: number_bits.py.

    "62f<base64>"        62 numbers: of each the first 24 bits of its float32, rounded; 4.8 significant digits
    "62g<base64>"        the first 20 bits; 3.6 significant digits, off by 0.03 % at most
    "62h<base64>"        the first 16 bits; 2.4 significant digits, off by 0.4 % at most: for what sampling leaves less of
    "62l14:<base64>"     62 levels of 14 bits: level q stands for low 2^(step q); before them low and step, 24 bits of a float32
    "62s14:<base64>"     the same with a bit before each level, 1 where the number is negative
    "13,25zh<base64>"    a 13 x 25 array, zeros left out: a bit for every number, 1 where it is not zero, then those that are not

Bits are in order, the highest first; what is missing to a whole byte is zero. Knows no torch.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from typing import Any

#: A short text with zeros left out stands for many numbers, and whoever reads it must not run out of memory.
MOST = 4096

#: Form -> hexadecimal digits of a number.
_DIGITS = {"f": 6, "g": 5, "h": 4}
_SHAPE_AND_FORM = re.compile(r"(\d{1,6}(?:,\d{1,6})*)(z?)([fgh]|[ls]\d{1,2}:)", re.ASCII)
_MOST_BITS = 24  # of a level
_HEAD = 48  # bits before the levels


def unpack(text: str) -> tuple[list[Any], int]:
    """Return the (nested) list that a text stands for, and how many numbers it holds.

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
    """Return the numbers of which hexadecimal digits are the first bits."""
    if len(data) - count * digits not in (0, 1):
        raise ValueError("there are more or fewer numbers than promised")
    rest = "0" * (8 - digits)
    words = "".join([data[start : start + digits] + rest for start in range(0, count * digits, digits)])
    return list(struct.unpack(f">{count}f", bytes.fromhex(words)))


def _read_levels(data: str, count: int, width: int, signed: bool) -> list[Any]:
    """Return the numbers of levels, of hexadecimal digits."""
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


def _from_bits(bits: int) -> float:
    return float(struct.unpack(">f", struct.pack(">I", bits << 8))[0])


def is_packed(value: Any) -> bool:
    """Return whether a cell of a row is a text of packed numbers; the other texts there are "NaN" and the infinities."""
    return type(value) is str and value[:1].isdigit()
