"""The settings of a run as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat_settings(info: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested settings as rows; what the report shows elsewhere is left out.

    >>> flat_settings({"seed": 0, "optimizer": [{"lr": 0.1}], "cost": {"share": 0.04}})
    [('seed', 0), ('optimizer[0].lr', 0.1)]
    """
    rows: list[tuple[str, Any]] = []
    for key, value in info.items():
        if not prefix and key == "cost":
            continue
        if isinstance(value, dict) and value:
            rows += flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                rows += flat_settings(item, f"{prefix}{key}[{index}].")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
