"""Packed numbers: many numbers in one text of a log line, at three or four characters a number instead of eleven. Knows no torch.

    "62f<base64>"        62 numbers: of each the first 24 bits of its float32, rounded; 4.8 significant digits
    "62g<base64>"        the first 20 bits; 3.6 significant digits, off by 0.03 % at most
    "62h<base64>"        the first 16 bits; 2.4 significant digits, off by 0.4 % at most: for what sampling leaves less of
    "13,25zh<base64>"    a 13 x 25 array, zeros left out: a bit for every number, 1 where it is not zero, then those that are not

Bits are in order, the highest first; what is missing to a whole byte is zero. Only finite numbers are packed, so that NaN and the
infinities stay written out.
"""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Sequence
from typing import Any, Literal

Form = Literal["f", "g", "h"]

#: Fewer are as short when they are written out.
FEWEST = 4
#: Where zeros are left out, a short text stands for many numbers, and whoever reads it must not run out of memory.
MOST = 4096

#: Form -> hexadecimal digits of a number.
_DIGITS = {"f": 6, "g": 5, "h": 4}
_SHAPE_AND_FORM = re.compile(r"(\d{1,6}(?:,\d{1,6})*)(z?)([fgh])")
_LEAST, _GREATEST = 1.2e-38, 3e38  # what float32 knows in full


def pack(values: Sequence[Any], form: Form) -> str | None:
    """Return (nested) lists of numbers as a text, or None if they cannot be packed.

    >>> pack([0.1, 0.2, 0.3, 0.4, 0.5], "f")
    '5fPczNPkzNPpmaPszNPwAA'
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
    if not all(not value or _LEAST < abs(value) < _GREATEST for value in flat):  # NaN is not greater, either
        return None
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
    text = mask + f"%0{digits}x" * len(numbers) % tuple(numbers)
    data = base64.b64encode(bytes.fromhex(text + "0" * (len(text) % 2))).decode().rstrip("=")
    return f"{','.join(map(str, shape))}{'z' if mask else ''}{form}{data}"


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
    count, digits = math.prod(shape), _DIGITS[found[3]]
    if not 0 < count <= MOST:
        raise ValueError(f"{count} numbers are not packed into one text")
    data = base64.b64decode(text[found.end() :] + "=" * (-(len(text) - found.end()) % 4), validate=True).hex()
    mask, there = "", count
    if found[2]:
        length = -(-count // 4)
        mask = format(int(data[:length], 16), f"0{4 * length}b")[:count]
        data, there = data[length:], mask.count("1")
    if len(data) - there * digits not in (0, 1):
        raise ValueError("there are more or fewer numbers than promised")
    rest = "0" * (8 - digits)
    words = "".join([data[start : start + digits] + rest for start in range(0, there * digits, digits)])
    numbers: list[Any] = list(struct.unpack(f">{there}f", bytes.fromhex(words)))
    if mask:
        kept = iter(numbers)
        numbers = [next(kept) if bit == "1" else 0.0 for bit in mask]
    for length in reversed(shape[1:]):
        numbers = [numbers[start : start + length] for start in range(0, len(numbers), length)]
    return numbers, count


def _hexadecimal(bits: str) -> str:
    """Return bits as hexadecimal digits."""
    length = -(-len(bits) // 4)
    return format(int(bits.ljust(4 * length, "0"), 2), f"0{length}x")


def is_packed(value: Any) -> bool:
    """Return whether a cell of a row is a text of packed numbers; the other texts there are "NaN" and the infinities."""
    return type(value) is str and value[:1].isdigit()
