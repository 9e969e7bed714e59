"""Histories made by hand: readings as a run would leave them, each one an argument away from healthy."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule

#: A number, or what gives it for a step.
Level = float | Callable[[int], float]


def at(level: Level, step: int) -> float:
    return level(step) if callable(level) else level


@functools.cache
def _wobble(noise: float, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [1 + generator.gauss(0, noise) for _ in range(2000)]


def falling(begin: float, end: float, over: float = 40) -> Callable[[int], float]:
    """A loss that comes down, with a few per cent of noise."""
    wobble = _wobble(0.03, 0)
    return lambda step: (end + (begin - end) * math.exp(-step / over)) * wobble[step % len(wobble)]


def level(value: float, noise: float = 0.03) -> Callable[[int], float]:
    """A level with relative noise."""
    wobble = _wobble(noise, 1)
    return lambda step: value * wobble[step % len(wobble)]


def history(
    steps: int,
    loss: Level = 1.0,
    *,
    layers: Mapping[str, float] | None = None,
    shape: Sequence[int] = (10, 10),
    optimizers: Sequence[str] = ("SGD",),
    without: Sequence[str] = (),
    **levels: Level,
) -> History:
    """Return the history of a run in which every step was measured; readings default to healthy values.

    Args:
        steps: How many.
        loss: Level of the loss.
        layers: Root mean square gradient of a weight, by layer, in network order.
        shape: Of every layer.
        optimizers: Class names.
        without: Readings that were not measured.
        levels: Of the other readings.
    """
    healthy: dict[str, Level] = {
        "loss": loss,
        "learning_rate": 0.1,
        "grad_norm": level(0.5),
        "update_ratio": 5e-3,
        "weight_norm": 10.0,
        "taylor_gradient_term": 0.025,
        "taylor_curvature_term": 0.001,
        "curvature_along_gradient": 2.0,
        "gradient_noise_scale": 64.0,
        "batch_size": 64.0,
        **levels,
    }
    layers = layers or {}
    made = History({f"{name}.weight": shape for name in layers}, optimizers)
    for step in range(steps):
        row = {name: at(value, step) for name, value in healthy.items()}
        row["update_size"] = row["update_ratio"] * row.pop("weight_norm")
        row.update({f"grad_norm/{name}.weight": scale * math.sqrt(math.prod(shape)) for name, scale in layers.items()})
        made.add(step, {name: value for name, value in row.items() if name.partition("/")[0] not in without})
    return made


def first_alert(rule: Rule, steps: int, *args: Level, **kwargs: object) -> Alert | None:
    """Ask the rule after every step, as the cockpit does, and return the first alert."""
    whole = history(steps, *args, **kwargs)  # type: ignore[arg-type]
    return replay(rule, whole)


def first(rule: Rule, steps: int, **levels: Level) -> Alert | None:
    """Ask after every step of a history of these readings alone; a level that gives NaN was not measured at that step."""
    history = History()
    for step in range(steps):
        row = {name: at(level, step) for name, level in levels.items()}
        history.add(step, {name: value for name, value in row.items() if value == value})
        alert = rule.check(history)
        if alert is not None:
            return alert
    return None


def replay(rule: Rule, whole: History) -> Alert | None:
    """Feed a copy of the history to the rule, step by step."""
    growing = History(whole.shapes, whole.optimizers)
    layers = {f"{reading}/{layer}": value for reading in ("grad_norm",) for layer, value in whole.layers(reading).items()}
    names = [name for name in RAW if name in whole]
    columns = {name: dict(zip(whole.steps(name), whole.values(name), strict=True)) for name in names}
    for step in range(whole.step + 1):
        row = {name: column[step] for name, column in columns.items() if step in column}
        growing.add(step, {**row, **layers})
        alert = rule.check(growing)
        if alert is not None:
            return alert
    return None


#: What the instruments write; the rest of a history is derived.
RAW = (
    "loss", "learning_rate", "grad_norm", "update_ratio", "update_size", "taylor_gradient_term", "taylor_curvature_term",
    "curvature_along_gradient", "gradient_noise_scale", "batch_size", "max_eigenvalue", "hessian_trace", "loss_over_uniform",
    "dead_units",
)  # fmt: skip


def readable(alert: Alert) -> None:
    """Hold what every alert must be, whatever the numbers were: sentences, and something to do."""
    for text in (alert.cause, alert.advice):
        words = text.lower().replace(",", " ").replace(".", " ").split()
        assert (text[0].isupper() or text[0].isdigit()) and text.endswith("."), text
        assert not {"nan", "inf", "-inf", "none", "nan%", "inf%"} & set(words), text
        assert not any(bad in text.lower() for bad in ("nan%", "inf%", "nan times", "inf times", "  ", "..")), text
    assert any(character.isdigit() for character in alert.cause), alert.cause
    assert alert.evidence and 0 < alert.confidence <= 1
    assert all(isinstance(value, (int, float)) for value in alert.evidence.values()), alert.evidence
