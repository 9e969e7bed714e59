"""Many numbers in one text: they come back, up to the rounding that the form promises, and nothing else is believed."""

from __future__ import annotations

import base64
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit_lite.number_bits import LEAST, BitReader, Form, bits_of, numbers_as_bits, text_of

#: Form -> greatest relative error.
ERRORS: dict[Form, float] = {"e": 1e-6, "f": 2**-16, "g": 2**-12, "h": 2**-8, "i": 2**-5}
FORMS = sorted(ERRORS)


def there_and_back(values: list[Any], form: Form) -> list[Any]:
    """Return what is read of numbers that were written."""
    bits = numbers_as_bits(values, form)
    assert bits is not None
    reader = BitReader(text_of(bits))
    found = reader.numbers(len(values), reader.number(5))
    reader.end()
    return found


@given(
    st.lists(st.floats(-1e37, 1e37).filter(lambda value: value == 0 or abs(value) > LEAST), min_size=1, max_size=200),
    st.sampled_from(FORMS),
)
def test_any_numbers_come_back(values: list[float], form: Form) -> None:
    found = there_and_back(values, form)
    assert all(abs(a - b) <= 1.001 * ERRORS[form] * abs(b) for a, b in zip(found, values, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_number_keeps_its_place(form: Form) -> None:
    values = [0.5, math.nan, -math.nan, None, math.inf, -math.inf, 0.0, -2.0, "NaN", "-Infinity", 3]
    found = there_and_back(values, form)
    assert [index for index, value in enumerate(found) if value is None] == [3]
    numbers = [0.0 if value is None else float(value) for value in values]
    assert [0.0 if value is None else value for value in found] == pytest.approx(numbers, rel=ERRORS[form], nan_ok=True)


@pytest.mark.parametrize("form", FORMS)
def test_missing_numbers_take_a_bit_each(form: Form) -> None:
    numbers = [0.3 + number for number in range(50)]
    some = [None if number in (3, 7, 20, 21, 49) else value for number, value in enumerate(numbers)]
    assert [value is None for value in there_and_back(some, form)] == [value is None for value in some]
    assert len(numbers_as_bits(some, form) or "") <= 55 + 29 + 45 * 28
    assert numbers_as_bits([None, None], form) is None


@pytest.mark.parametrize(("form", "bits"), [("g", 14), ("h", 10), ("i", 7)])
def test_numbers_that_are_alike_in_size_take_few_bits(form: Form, bits: int) -> None:
    draw = random.Random(0)
    values = [draw.choice([-1, 1]) * 10 ** draw.uniform(-3, 0) for _ in range(62)]
    for numbers, signed in ((values, 1), ([abs(value) for value in values], 0)):
        written = numbers_as_bits(numbers, form)
        assert written is not None and len(written) <= 29 + 62 * (bits + signed)
    assert len(numbers_as_bits([0.25] * 62, form) or "") == 29 + 62
    assert there_and_back([0.25] * 62, form) == [0.25] * 62


@pytest.mark.parametrize("share_of_zeros", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_zeros_are_exact_and_short(form: Form, share_of_zeros: float) -> None:
    draw = random.Random(0)
    values = [0.0 if draw.random() < share_of_zeros else float(draw.randint(1, 65535)) for _ in range(325)]
    found = there_and_back(values, form)
    assert [value == 0 for value in found] == [value == 0 for value in values]
    assert len(numbers_as_bits(values, form) or "") <= 29 + (325 if share_of_zeros else 0) + 28 * 325 * (1.05 - share_of_zeros)


def test_whole_numbers_are_exact_up_to_what_the_form_holds() -> None:
    assert there_and_back([1, 255, 256, 4095, 65535], "f") == [1, 255, 256, 4095, 65535]
    assert there_and_back([1, 65537, 2**20 - 1], "e") == [1, 65537, 2**20 - 1]


@pytest.mark.parametrize(
    "values",
    [
        [],
        [1e39],
        [1e-40],
        [0.1, "text"],
        [0.1, [0.2]],
        [True, False],
        [10**400],
        [math.inf, 1e-40],
        [1e39, None],
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_such_number_is_left_to_others(values: list[Any], form: Form) -> None:
    assert numbers_as_bits(values, form) is None


def test_the_text_is_that_of_base64() -> None:
    draw = random.Random(0)
    for length in (*range(1, 12), 1500):
        data = bytes(draw.choice([0, 255, draw.randrange(256)]) for _ in range(length))
        text = text_of("".join(f"{byte:08b}" for byte in data))
        assert text == base64.b85encode(data).decode()
        reader = BitReader(text)
        assert bytes(reader.number(8) for _ in range(length)) == data
        reader.end()


@pytest.mark.parametrize(
    "text", ["", "0", "00000!", "~~~~~", "0000 ", "00\n00", "0000\x7f", "\N{GREEK SMALL LETTER ALPHA}0000", '0"000']
)
def test_what_is_no_text_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        BitReader(text)


@pytest.mark.parametrize(
    "bits",
    [
        bits_of(0, 5),
        bits_of(29, 5) + "1111" + bits_of(29, 5) + "1111" + (numbers_as_bits([0.5] * 4, "e") or ""),
        bits_of(29, 5) + "111",
        bits_of(22, 5) + "0" * 100,
        bits_of(31, 5) + "0" * 100,
        bits_of(28, 5) + "0" + "0" * 27,
        bits_of(3, 5) + "0" + "11" + "0" + bits_of(1 << 12, 20) + "0" * 12,  # no such form
        bits_of(3, 5) + "0" + "00" + "0" + "0" * 20 + "0" * 12,  # nothing is the least
        bits_of(3, 5) + "0" + "00" + "0" + bits_of(0b11111111 << 12, 20) + "0" * 12,  # nor is an infinity
        bits_of(15, 5) + "0" + "10" + "0" + bits_of(1 << 12, 20) + "1" * 60,  # 2^2900
        bits_of(20, 5) + "1" + "1110",
    ],
)
def test_blocks_that_are_not_there_are_refused(bits: str) -> None:
    reader = BitReader(text_of(bits))
    with pytest.raises(ValueError):
        reader.numbers(4, reader.number(5))
        reader.end()


def test_more_than_promised_is_refused() -> None:
    reader = BitReader(text_of((numbers_as_bits([0.1, 0.2], "e") or "") + "0" * 8))
    reader.numbers(2, reader.number(5))
    with pytest.raises(ValueError, match="more"):
        reader.end()
