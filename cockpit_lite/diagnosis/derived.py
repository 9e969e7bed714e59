"""Numbers that several rules derive from the readings."""

from __future__ import annotations

import math

from cockpit_lite.diagnosis.history import History

#: Gradient norm over weight norm beyond which the gradient itself, not the learning rate, is out of proportion. The nets of the
#: test zoo start between 0.01 and 0.3.
OUT_OF_PROPORTION = 100.0

#: A step that changes the weights by more than this share of their norm is long.
LONG_UPDATE_RATIO = 0.2

#: A plain gradient step whose curvature term is this many times its gradient term overshoots by far: it raises its own mini-batch loss.
LONG_OVERSHOOT = 2.0


def overshoot(history: History) -> list[tuple[int, float]]:
    """Return (step, 1/2 e^2 g'Hg over e g'g) for every step where both Taylor terms are known.

    Above 1/2 the plain gradient step is longer than the best one on its own mini-batch, above 1 it raises the mini-batch loss.
    """
    pairs = history.pairs("taylor_curvature_term", "taylor_gradient_term")
    return [(step, curvature / gradient) for step, curvature, gradient in pairs if gradient > 0 and math.isfinite(curvature)]


def first_long_step(history: History) -> int | None:
    """Return the first step that was long by its update ratio or by its overshoot, or None."""
    ratios = zip(history.steps("update_ratio"), history.values("update_ratio"), strict=True)
    long_steps = [step for step, ratio in ratios if not ratio <= LONG_UPDATE_RATIO]
    long_steps += [step for step, ratio in overshoot(history) if ratio > LONG_OVERSHOOT]
    return min(long_steps, default=None)


def out_of_proportion(history: History) -> tuple[int, float] | None:
    """Return (step, gradient norm over weight norm) of the first gradient that is out of proportion to the weights, or None.

    A gradient that became so after a long step is what that step has done, and does not count.
    """
    weights = {step: size / ratio for step, size, ratio in history.pairs("update_size", "update_ratio") if ratio > 0}
    for step, norm in zip(history.steps("grad_norm"), history.values("grad_norm"), strict=True):
        weight = weights.get(step, math.nan)
        if weight > 0 and norm / weight > OUT_OF_PROPORTION:
            long_step = first_long_step(history)
            return None if long_step is not None and long_step < step else (step, norm / weight)
    return None
