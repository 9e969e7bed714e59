"""Other detectors, written from their published thresholds, on the same runs.

Each takes a run and returns (name, step) of its first alarm, or None. What they call a gradient's mean magnitude is taken
from its norm: sqrt(2 / pi) of the root mean square, as for normally distributed elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cockpit_lite.run import Run

Alarm = tuple[str, int] | None


def nan_watcher(run: Run) -> Alarm:
    """Look for a loss that is not finite."""
    return next((("non-finite", int(step)) for step, value in _recorded(run, "loss") if not math.isfinite(value)), None)


def spike_detector(run: Run) -> Alarm:
    """Look for a gradient norm 2.5 standard deviations above its moving average (factor 0.97)."""
    mean = square = 0.0
    for place, (step, value) in enumerate(_recorded(run, "grad_norm")):
        if not math.isfinite(value):
            return ("exploding-gradients", int(step))
        weight = 1 - 0.97**place
        if place >= 10:
            level = mean / weight
            deviation = math.sqrt(max(square / weight - level**2, 0.0))
            if deviation and value > level + 2.5 * deviation:
                return ("exploding-gradients", int(step))
        mean, square = 0.97 * mean + 0.03 * value, 0.97 * square + 0.03 * value**2
    return None


def sagemaker(run: Run) -> Alarm:
    """Use the defaults of SageMaker Debugger's built-in rules."""
    return _first(
        _below(run, "mean gradient", 1e-7, "vanishing-gradients"),
        _share_above(run, "dead_units", 0.5, "dead-units"),
        _outside(run, "update_ratio", 1e-8, 10.0, "learning-rate-too-high"),
        _loss_not_decreasing(run, 10),
        nan_watcher(run),
    )


def deep_checker(run: Run) -> Alarm:
    """Use the thresholds of TheDeepChecker."""
    return _first(
        _below(run, "mean gradient", 1e-6, "vanishing-gradients"),
        _outside(run, "mean gradient", 0.0, 1e6, "exploding-gradients"),
        _outside(run, "update_ratio", 1e-4, 1e-1, "learning-rate-too-high"),
        _outside(run, "activation_std", 0.5, 2.0, "init-scale"),
        _share_above(run, "dead_units", 0.5, "dead-units"),
        _share_above(run, "saturation", 0.85, "saturated-units"),
        _falls_little(run),
        nan_watcher(run),
    )


def _series(run: Run, name: str) -> list[tuple[int, float]]:
    if name != "mean gradient":
        return _recorded(run, name)
    shapes = run.info.get("shapes", {})
    lowest: dict[int, float] = {}
    for parameter, shape in shapes.items():
        if len(shape) < 2:
            continue
        for step, norm in _recorded(run, f"grad_norm/{parameter}"):
            mean = norm / math.sqrt(math.prod(shape)) * math.sqrt(2 / math.pi)
            lowest[int(step)] = min(lowest.get(int(step), math.inf), mean)
    return sorted(lowest.items())


def _recorded(run: Run, name: str) -> list[tuple[int, float]]:
    return list(zip(*run.series(name), strict=True)) if name in run.names else []


def _below(run: Run, name: str, limit: float, cause: str) -> Alarm:
    return next(((cause, int(step)) for step, value in _series(run, name) if value < limit), None)


def _share_above(run: Run, name: str, limit: float, cause: str) -> Alarm:
    return next(((cause, int(step)) for step, value in _series(run, name) if value > limit), None)


def _outside(run: Run, name: str, low: float, high: float, cause: str) -> Alarm:
    return next(((cause, int(step)) for step, value in _series(run, name) if not low <= value <= high), None)


def _loss_not_decreasing(run: Run, window: int) -> Alarm:
    losses = _recorded(run, "loss")
    for (_, before), (step, value) in zip(losses[::window], losses[window::window], strict=False):
        if not value < before:
            return ("learning-rate-too-low", int(step))
    return None


def _falls_little(run: Run, window: int = 20) -> Alarm:
    losses = _recorded(run, "loss")
    for (_, before), (step, value) in zip(losses[::window], losses[window::window], strict=False):
        if not value < 0.95 * before:
            return ("learning-rate-too-low", int(step))
    return None


def _first(*alarms: Alarm) -> Alarm:
    found = [alarm for alarm in alarms if alarm is not None]
    return min(found, key=lambda alarm: alarm[1], default=None)


BASELINES: dict[str, Callable[[Run], Alarm]] = {
    "NaN watcher": nan_watcher,
    "gradient norm z-score": spike_detector,
    "SageMaker Debugger defaults": sagemaker,
    "TheDeepChecker thresholds": deep_checker,
}
