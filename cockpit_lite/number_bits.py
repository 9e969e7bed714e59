"""Numbers as bits: many numbers of a log line in one text, at half a character to five a number. Knows no torch.

A block of numbers, whose count is known to who reads it::

    width     5 bits   1 to 19: levels of so many bits; 20, 24, 28: so many first bits of each number's float32, rounded
                       29: some are missing: a bit for each, 1 where it is there, and a block of those
    zeros     1 bit    1: a bit for each number follows, 1 where it is not zero; only those are written
    form      2 bits   before levels: which of "g", "h" and "i" below
    signed    1 bit    before levels: 1: a bit precedes each of them, 1 where the number is negative
    low      20 bits   before levels: of the least magnitude, first bits of a float32 behind its sign

Level q stands for low 2^(q step); the step is as wide as the form allows. So numbers alike in size take few bits. NaN and the
infinities have a place among the first bits only.

The text has 32 bits in 5 characters (``base64.b85encode``), all of which JSON takes as they are. What is missing to a whole byte
is zero.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from operator import ne
from typing import Any, Literal

import numpy as np

#: What numbers may be off by, relative: "e" 1e-6, "f" 2^-16, "g" 2^-12 (0.03 %), "h" 2^-8 (0.4 %), "i" 2^-5 (3 %).
Form = Literal["e", "f", "g", "h", "i"]
#: The forms that may be levels, as they are numbered, and what these may be off by.
_LEVELS: tuple[Form, ...] = ("g", "h", "i")
_STEPS = [2 * math.log2(1 + error) * 0.998 for error in (2**-12, 2**-8, 2**-5)]
_FIRST_BITS: dict[Form, int] = {"e": 28, "f": 24, "g": 20, "h": 20, "i": 20}
#: Magnitudes between which float32 knows numbers in full.
LEAST, GREATEST = 1.2e-38, 3e38
#: Numbers of an array that has a block, at most: with zeros left out a short text stands for many.
MOST = 4096

_LOW = 20  # bits of the least magnitude
_MOST_BITS = 19  # of a level
_NARROW = 10  # bits of levels whose digits are kept
_HEAD = 3 + _LOW  # bits of levels before the first

_SOME = 29  # stands for the width where some are missing
_NAN_BITS, _INFINITE_BITS = 0x7FC00000, 0x7F800000
#: As of base64.b85encode, which takes ten times as long.
_ALPHABET = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~", np.uint8)
_PLACES = 85 ** np.arange(4, -1, -1)
_DIGITS = np.full(256, -1)
_DIGITS[_ALPHABET] = np.arange(85)


def bits_of(value: int, width: int) -> str:
    """Return a whole number as bits, the highest first.

    >>> bits_of(5, 4)
    '0101'
    """
    return format(value, f"0{width}b")


def numbers_as_bits(values: Sequence[Any], form: Form) -> str | None:
    """Return a block of numbers as bits, or None if that cannot hold them as precisely as the form says.

    Args:
        values: Numbers, texts as run_log.py writes them for what is not finite, or None.
        form: What they may be off by.
    """
    if None in values:
        block = numbers_as_bits([value for value in values if value is not None], form)
        mask = "".join(["0" if value is None else "1" for value in values])
        return None if block is None else f"{_SOME:05b}{mask}{block}"
    kinds = set(map(type, values))
    if not values or not kinds <= {float, int, str}:
        return None
    try:
        if kinds != {float}:
            values = list(map(float, values))
    except (ValueError, OverflowError):  # a text that is no number, an integer that no float can hold
        return None
    there = values if all(values) else list(filter(None, values))
    sizes = list(map(abs, there))
    raw = _FIRST_BITS[form]
    if sizes and (any(map(ne, sizes, sizes)) or not (min(sizes) > LEAST and max(sizes) < GREATEST)):  # NaN is not even itself
        finite = [size for size in sizes if size < math.inf]
        if finite and not (min(finite) > LEAST and max(finite) < GREATEST):
            return None
        return _first_bits(values, there, raw)
    return (_levels(values, there, sizes, form, raw) if sizes and form in _LEVELS else None) or _first_bits(values, there, raw)


def _levels(values: Sequence[float], there: Sequence[float], sizes: Sequence[float], form: Form, raw: int) -> str | None:
    """Return a block of levels, or None where first bits are as short; ``there`` are those that are not zero."""
    number = _LEVELS.index(form)
    low = int(struct.unpack(">I", struct.pack(">f", min(sizes)))[0]) >> (31 - _LOW)
    start, steps = math.log2(_from_bits(low << (31 - _LOW))), 1 / _STEPS[number]
    width = max(round((math.log2(max(sizes)) - start) * steps).bit_length(), 1)
    signed = min(there) < 0
    if width > _MOST_BITS or _STEPS[number] * (1 << width) > 512 or _HEAD + (width + signed) * len(sizes) >= raw * len(sizes):
        return None
    levels = [round((exponent - start) * steps) for exponent in map(math.log2, sizes)]
    digits = list(map(_digits_of(width).__getitem__, levels)) if width <= _NARROW else [f"{q:0{width}b}" for q in levels]
    if signed:
        digits = [("1" if value < 0 else "0") + digit for value, digit in zip(there, digits, strict=True)]
    mask = "" if there is values else "".join(map("01".__getitem__, map(bool, values)))
    return f"{_begin(width, mask)}{number:02b}{signed:b}{low:0{_LOW}b}{''.join(digits)}"


def _first_bits(values: Sequence[float], there: Sequence[float], width: int) -> str:
    """Return a block of the first bits of every number, zeros left out where that is shorter."""
    mask = ""
    if (len(values) - len(there)) * width > len(values):
        mask = "".join(map("01".__getitem__, map(bool, values)))
        values = there
    cut = 32 - width
    half = 1 << (cut - 1)
    words = struct.unpack(f">{len(values)}I", struct.pack(f">{len(values)}f", *values))
    first = [(_NAN_BITS if word & 0x7FFFFFFF > _INFINITE_BITS else word) + half >> cut for word in words]  # NaN has one form
    digits = f"%0{width // 4}x" * len(first) % tuple(first)
    return f"{_begin(width, mask)}{_bits(digits)}"


@lru_cache(maxsize=_NARROW)
def _digits_of(width: int) -> list[str]:
    """Return the binary digits of all levels of so many bits: to look them up takes a third of the time to write them."""
    return [format(level, f"0{width}b") for level in range(1 << width)]


def _begin(width: int, mask: str) -> str:
    return f"{width:05b}1{mask}" if mask else f"{width:05b}0"


def _bits(hexadecimal: str) -> str:
    return format(int(hexadecimal, 16), f"0{4 * len(hexadecimal)}b") if hexadecimal else ""


def _from_bits(word: int) -> float:
    return float(struct.unpack(">f", struct.pack(">I", word))[0])


def text_of(bits: str) -> str:
    """Return blocks, one behind the other, as a text."""
    length = max(-(-len(bits) // 32), 1)
    words = np.frombuffer(int(bits.ljust(32 * length, "0"), 2).to_bytes(4 * length, "big"), ">u4")
    text = _ALPHABET[words.astype(np.int64)[:, None] // _PLACES % 85].tobytes().decode()
    return text[: len(text) - (32 * length - len(bits)) // 8]


class BitReader:
    """Reads what :func:`text_of` made.

    Raises:
        ValueError: if it is no such text, here or when more is read than it holds.
    """

    def __init__(self, text: str) -> None:
        digits = _DIGITS[np.frombuffer(text.encode("ascii") + b"~" * (-len(text) % 5), np.uint8)]
        words = digits.reshape(-1, 5) @ _PLACES
        if not len(words) or digits.min() < 0 or words.max() >= 1 << 32 or len(text) % 5 == 1:
            raise ValueError("this is no text of numbers")
        self._bits = format(int.from_bytes(words.astype(">u4").tobytes(), "big"), f"0{32 * len(words)}b")
        self._length = len(text) * 4 // 5 * 8
        self._place = 0

    def number(self, width: int) -> int:
        """Read a whole number of so many bits."""
        return int(self._take(width), 2)

    def numbers(self, count: int, width: int) -> list[Any]:
        """Read a block whose width has been read: so many numbers, or None where one is missing."""
        if width == _SOME:
            mask, inner = self._take(count), self.number(5)
            if inner == _SOME:
                raise ValueError("some of some are missing")
            known = iter(self.numbers(mask.count("1"), inner))
            return [next(known) if bit == "1" else None for bit in mask]
        mask = self._take(count) if self.number(1) else ""
        there = mask.count("1") if mask else count
        if 0 < width <= _MOST_BITS:
            numbers = self._levels(there, width)
        elif width in _FIRST_BITS.values():
            numbers = _numbers_of_first_bits(self._take(there * width), width)
        else:
            raise ValueError("there are no such numbers")
        if mask:
            kept = iter(numbers)
            numbers = [next(kept) if bit == "1" else 0.0 for bit in mask]
        return numbers

    def end(self) -> None:
        """Say that everything has been read."""
        if self._length - self._place >= 8:
            raise ValueError("there are more numbers than promised")

    def _levels(self, count: int, width: int) -> list[Any]:
        form, signed, low = self.number(2), self.number(1), _from_bits(self.number(_LOW) << (31 - _LOW))
        if form >= len(_LEVELS) or not 0 < low < math.inf or _STEPS[form] * (1 << width) > 512:
            raise ValueError("there are no such levels")
        step, each = _STEPS[form], width + signed
        bits = self._take(count * each)
        places = range(0, count * each, each)
        if not signed:
            return [low * 2.0 ** (step * int(bits[place : place + each], 2)) for place in places]
        return [
            (-low if bits[place] == "1" else low) * 2.0 ** (step * int(bits[place + 1 : place + each], 2)) for place in places
        ]

    def _take(self, length: int) -> str:
        end = self._place + length
        if end > self._length:
            raise ValueError("there are fewer numbers than promised")
        bits = self._bits[self._place : end]
        self._place = end
        return bits


def _numbers_of_first_bits(bits: str, width: int) -> list[Any]:
    """Return the numbers of which these are the first bits."""
    if not bits:
        return []
    digits, rest = format(int(bits, 2), f"0{len(bits) // 4}x"), "0" * (8 - width // 4)
    each = width // 4
    words = "".join([digits[start : start + each] + rest for start in range(0, len(digits), each)])
    return list(struct.unpack(f">{len(words) // 8}f", bytes.fromhex(words)))
