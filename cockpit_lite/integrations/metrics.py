"""Metrics: what frameworks call their validation numbers, by the names that the findings know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: What a name is said as, by its last word.
_KNOWN = {"acc": "accuracy"}


def validation_metrics(metrics: Mapping[str, Any], prefixes: Iterable[str]) -> dict[str, float]:
    """Return the numbers whose names begin with one of the prefixes, as ``validation_<rest>``.

    >>> validation_metrics({"val_loss": 0.5, "val/acc": 0.9, "train_loss": 0.4, "validity": 1.0}, ("val",))
    {'validation_loss': 0.5, 'validation_accuracy': 0.9}
    """
    found = {}
    for name, value in metrics.items():
        for prefix in prefixes:
            rest = name.removeprefix(prefix)
            if rest != name and rest[:1] in ("_", "/", ".", "-") and _is_number(value):
                word = rest[1:]
                found[f"validation_{_KNOWN.get(word, word)}"] = float(value)
    return found


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError, RuntimeError):
        return False
    return True
