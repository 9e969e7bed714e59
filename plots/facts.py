"""What gauges ask of a run: a series that may be missing, why it is missing, the optimizer's settings, the stability limit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from cockpit_lite.plots.course import course
from cockpit_lite.plots.numbers import percent, short
from cockpit_lite.run import Run

NOTHING = (np.array([], dtype=np.int64), np.array([], dtype=np.float64))


def scalars(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of a reading of single numbers; empty arrays if it was never measured or holds arrays.

    Of a very long series it is a sample: evenly spread steps, the same ones of every reading, and the last ones.
    """
    try:
        steps, values = run.series(name)
    except (KeyError, ValueError):
        return NOTHING
    if values.ndim != 1:
        return NOTHING
    long = course(run, name)
    return (steps, values) if long is None else long.sample


def recent(run: Run, name: str, count: int = 10) -> float | None:
    """Return the median of the last ``count`` finite values, so that one noisy step does not make the verdict, or None."""
    values = scalars(run, name)[1][-4 * count :]
    finite = values[np.isfinite(values)][-count:].tolist()
    return statistics.median(finite) if finite else None


def broken_since(run: Run, name: str) -> tuple[int, float] | None:
    """Return the first step of the non-finite tail of a reading and its value, or None if the last value is finite."""
    if not len(values := scalars(run, name)[1]) or math.isfinite(values[-1]):
        return None
    steps, values = run.series(name)  # the first of them may not be in a sample
    finite = np.flatnonzero(np.isfinite(values))
    first = finite[-1] + 1 if len(finite) else 0
    return int(steps[first]), float(values[first])


def is_running(run: Run) -> bool:
    """Return whether the run has not written its end yet."""
    return run.info.get("status", "running") == "running"


def why_missing(run: Run, name: str) -> str:
    """Return the reason that completes "not measured, because ..."."""
    if name in run.not_measured:
        return run.not_measured[name]
    if run.last_step is None:
        return "no training step has been seen yet" if is_running(run) else "no training step was seen"
    if is_running(run):
        switched_on = name in run.info.get("instruments", ())
        return "it was not due yet" if switched_on else "its instrument is not switched on, or was not due yet"
    return "its instrument was not switched on"


def described(value: Any) -> str:
    """Return the name in a description that is either a name or a mapping that holds one.

    >>> described("SGD"), described({"class": "Adam", "lr": 0.1}), described([{"name": "SGD"}, "Adam"]), described(None)
    ('SGD', 'Adam', 'SGD, Adam', '')
    """
    if isinstance(value, Mapping):
        return next((str(value[key]) for key in ("name", "class", "type") if value.get(key)), "")
    if isinstance(value, (list, tuple)):
        return ", ".join(filter(None, map(described, value)))
    return "" if value is None else str(value)


def elide(text: str, length: int) -> str:
    """Return the text, cut to a length.

    >>> elide("short", 8), elide("rather long", 8)
    ('short', 'rather …')
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def cost(share: float) -> str:
    """Return what measuring costs, as a share of the training.

    >>> cost(0.04), cost(4.93)
    ('measuring costs 4 %', 'measuring costs 4.9 times the training')
    """
    return f"measuring costs {percent(share)}" if share < 1 else f"measuring costs {short(share, 2)} times the training"


def measuring_share(run: Run) -> float | None:
    """Return what measuring has cost so far, as a share of the training: the final account if the run has ended, or None."""
    account = run.info.get("cost")
    share = account.get("share") if isinstance(account, Mapping) else None
    if isinstance(share, float) and not is_running(run):
        return share
    return recent(run, "overhead")


def optimizer_name(run: Run) -> str:
    """Return the class name of the optimizer, or of all of them."""
    return described(run.info.get("optimizer"))


def _settings(description: Any) -> dict[str, Any]:
    """Return the hyperparameters in an optimizer's description, wherever they stand, those of the first group."""
    if isinstance(description, (list, tuple)):
        return _settings(description[0]) if description else {}
    if not isinstance(description, Mapping):
        return {}
    found = dict(description)
    for key in ("settings", "defaults", "groups", "param_groups"):
        found.update(_settings(description.get(key)))
    return found


def stability_factor(run: Run) -> float | None:
    """Return f of the limit f / learning rate on the largest eigenvalue, above which a step overshoots; None where none is known.

    On a quadratic, gradient descent is stable up to 2 / e, with momentum b up to 2 (1 + b) / e, with Nesterov momentum
    up to 2 (1 + b) / ((1 + 2 b) e) (Cohen et al. 2021). Adaptive methods have no limit on the plain Hessian.
    """
    description = run.info.get("optimizer")
    if optimizer_name(run) != "SGD":
        return None
    settings = _settings(description)
    momentum = float(settings.get("momentum") or 0.0)
    return 2 * (1 + momentum) / ((1 + 2 * momentum) if settings.get("nesterov") else 1.0)


def at_steps(run: Run, name: str, steps: np.ndarray) -> np.ndarray:
    """Return the reading's value at ``steps``, the last known one before each (NaN before the first)."""
    known_steps, values = scalars(run, name)
    if not len(known_steps):
        return np.full(len(steps), np.nan)
    index = np.searchsorted(known_steps, steps, side="right") - 1
    return np.where(index >= 0, values[np.maximum(index, 0)], np.nan)


def standard_errors(run: Run, name: str, steps: np.ndarray) -> np.ndarray:
    """Return the standard error of a reading at ``steps``; NaN where there is none."""
    how = run.how(name)
    if not how:
        return np.full(len(steps), np.nan)
    found = [how.get(step, {}).get("standard_error") for step in steps.tolist()]
    return np.array([error if isinstance(error, (int, float)) and error else math.nan for error in found], dtype=np.float64)
