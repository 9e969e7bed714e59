"""Texts of schema 2 are read as they were written, and nothing else is believed."""

from __future__ import annotations

import pytest

from cockpit_lite.packed_numbers import is_packed, unpack

LEVELS = [0.25, 0.5, 1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "numbers", "error"),
    [
        ("5fPczNPkzNPpmaPszNPwAA", [0.1, 0.2, 0.3, 0.4, 0.5], 2**-16),
        ("5gPczT5M0+maPszT8AAA", [0.1, 0.2, 0.3, 0.4, 0.5], 2**-12),
        ("4hPc2+TT6aPs0", [0.1, -0.2, 0.3, 0.4], 2**-8),
        ("20l6:PoAAPUMNAVq/AVq/AVq/AVq/AVq/", LEVELS * 5, 2**-5),
        ("27s6:PoAAPUMNgVdX+BV1ACqp+AKqn4AqqfgCqp+AKqn4", [-0.25, -0.5, -1.0, -2.0, -0.25, -0.5, -1.0, *LEVELS * 5], 2**-5),
        ("44zhAAAPAAAD+AQABAgEEAA", [0.0] * 20 + [1.0, 2.0, 4.0, 8.0] + [0.0] * 20, 2**-8),
    ],
)
def test_numbers_of_schema_2(text: str, numbers: list[float], error: float) -> None:
    assert is_packed(text)
    assert unpack(text) == (pytest.approx(numbers, rel=error), len(numbers))


def test_arrays_of_schema_2_keep_their_shape() -> None:
    row = [0.0] * 6 + [1.0, 3.0] + [0.0] * 6 + [2.0, 65535.0]
    assert unpack("2,16zfAwMDAz+AAEBAAEAAAEd//z+AAEBAAEAAAEd//w") == ([row, row], 32)


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
