"""Many numbers in one text: they come back, up to the rounding that the form promises, and nothing else is believed."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cockpit_lite.packed_numbers import FEWEST, MOST, Form, is_packed, pack, unpack

#: Form -> greatest relative error: half a unit in the last of 16, 12, 8 and 5 significant bits.
ERRORS: dict[Form, float] = {"f": 2**-16, "g": 2**-12, "h": 2**-8, "i": 2**-5}


@given(
    st.lists(st.floats(-1e37, 1e37).filter(lambda value: value == 0 or abs(value) > 1.2e-38), min_size=FEWEST, max_size=200),
    st.sampled_from(sorted(ERRORS)),
)
def test_any_numbers_come_back(values: list[float], form: Form) -> None:
    text = pack(values, form)
    assert text is not None and is_packed(text)
    found, count = unpack(text)
    assert count == len(values) == len(found)
    assert all(abs(a - b) <= 1.001 * ERRORS[form] * abs(b) for a, b in zip(found, values, strict=True))


@pytest.mark.parametrize("share_of_zeros", [0.0, 0.5, 0.95, 1.0])
def test_arrays_keep_their_shape_and_their_zeros(share_of_zeros: float) -> None:
    draw = random.Random(0)
    array = [[0.0 if draw.random() < share_of_zeros else float(draw.randint(1, 65535)) for _ in range(25)] for _ in range(13)]
    text = pack(array, "f")
    assert text is not None
    assert unpack(text) == (array, 325)
    assert len(text) < 30 + (325 / 6 if share_of_zeros else 0) + 4 * 325 * (1.1 - share_of_zeros)


@pytest.mark.parametrize(("form", "bits"), [("g", 14), ("h", 10), ("i", 7)])
def test_numbers_that_are_alike_in_size_take_few_bits(form: Form, bits: int) -> None:
    draw = random.Random(0)
    values = [draw.choice([-1, 1]) * 10 ** draw.uniform(-3, 0) for _ in range(62)]
    for numbers, signed in ((values, 1), ([abs(value) for value in values], 0)):
        text = pack(numbers, form)
        assert text is not None and len(text) <= len("62s14:") + math.ceil(math.ceil((48 + 62 * (bits + signed)) / 8) * 4 / 3)
        assert all(abs(a - b) <= ERRORS[form] * abs(b) for a, b in zip(unpack(text)[0], numbers, strict=True))
    same = pack([0.25] * 62, form)
    assert same is not None and len(same) < 30 and unpack(same)[0] == [0.25] * 62


def test_nan_may_fill_up_an_array() -> None:
    array = [[0.5, -1.0, math.nan], [-math.nan, 2.0, 0.0]]
    for form in ERRORS:
        text = pack(array, form, filled=True)
        assert text is not None and str(unpack(text)[0]) == str([[0.5, -1.0, math.nan], [math.nan, 2.0, 0.0]])


def test_whole_numbers_up_to_65535_are_exact() -> None:
    values = [1, 255, 256, 4095, 65535]
    text = pack(values, "f")
    assert text is not None and unpack(text)[0] == values


@pytest.mark.parametrize(
    "values",
    [
        [0.1] * (FEWEST - 1),
        [0.1, math.nan, 0.3, 0.4],
        [0.1, math.inf, 0.3, 0.4],
        [0.1, 1e39, 0.3, 0.4],
        [0.1, 1e-40, 0.3, 0.4],
        [0.1, None, 0.3, 0.4],
        [0.1, "NaN", 0.3, 0.4],
        [[0.1, 0.2], [0.3]],
        [[], [], [], []],
        [],
        [0.0] * (MOST + 1),
        [0.1, [0.2], 0.3, 0.4],
        [True, False, True, True],
    ],
)
def test_what_cannot_be_packed_is_left_as_it_is(values: list[Any]) -> None:
    assert pack(values, "f") is None


@pytest.mark.parametrize(
    "text",
    [
        "4f",
        "4fP4AAQAAAQEAAQIA",
        "4fP4AAQAAAQEAAQIAAAAAA",
        "3fP4AAQAAAQEAAQIAA",
        "4fP4AAQAAAQEAAQI!A",
        "4xP4AAQAAAQEAAQIAA",
        "4zf",
        "4l8",
        "4l8:",
        "4l0:PczMPBUcAAAAAAA",
        "4l99:PczMPBUcAAAAAAA",
        "4l8:AAAAPBUcAAAAAA",
        "4l8:f8AAPBUcAAAAAA",
        "4l8:PczMf4AAAAAAAA",
        "4l8:PczMfwAAAAAAAA",
        "4l8:PczMPBUcAAAAAAAA",
        "4l8:PczMPBUcAAAA",
        "8zf8A",
        "0f",
        "999999h",
        "100,100zfAA",
        "999999,999999,999999zfAA",
        "9" * 5000 + "f",
        "7",
        "\N{ARABIC-INDIC DIGIT THREE}f",
    ],
)
def test_what_is_not_packed_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        unpack(text)
