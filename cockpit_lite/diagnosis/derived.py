"""Numbers that several rules derive from the readings.

They are kept in the history beside the readings, under names that hold spaces, which no reading has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cockpit_lite.diagnosis.history import History

#: 1/2 e^2 g'Hg over e g'g, for optimizers that step along the gradient. Above 1/2 the plain gradient step is longer than the best
#: one on its own mini-batch, above 1 it raises the loss of its mini-batch.
OVERSHOOT = "curvature term over gradient term"

#: (g'g)^2 / (2 g'Hg), what the best step along the gradient would win on its own mini-batch, to second order.
BEST_GAIN = "gain of the best step along the gradient"

#: Norm of the gradient over norm of the weights.
PROPORTION = "gradient norm over weight norm"

#: Gradient norm over weight norm beyond which the gradient itself, not the learning rate, is out of proportion. The nets of the
#: test zoo start between 0.01 and 0.3.
OUT_OF_PROPORTION = 100.0

#: A step that changes the weights by more than this share of their norm is long.
LONG_UPDATE_RATIO = 0.2

#: A plain gradient step whose curvature term is this many times its gradient term, so that e exceeds 4 over the curvature along
#: the gradient, is beyond what the catapult mechanism brings back (Lewkowycz and others, 2020).
LONG_OVERSHOOT = 2.0

#: Weights that start at zero have no norm to compare a step with; the instrument then writes a number beyond this.
_NO_WEIGHTS = 1e30

#: A gradient noise scale of more than this many batches: what single steps do is chance, the loss moves for other reasons.
NOISE_OVER_BATCH = 3.0


def derived_readings(values: Mapping[str, Any], gradient_steps: bool) -> dict[str, float]:
    """Return what follows from the readings of one step.

    Args:
        values: The readings by name.
        gradient_steps: Whether the optimizer steps along the gradient.
    """
    derived: dict[str, float] = {}
    gradient, curvature = values.get("taylor_gradient_term"), values.get("taylor_curvature_term")
    if gradient_steps and gradient is not None and curvature is not None and 0 < gradient < math.inf and math.isfinite(curvature):
        derived[OVERSHOOT] = curvature / gradient
        if curvature > 0:
            derived[BEST_GAIN] = gradient * (gradient / curvature) / 4  # a power would raise where it overflows
    norm, size, ratio = values.get("grad_norm"), values.get("update_size"), values.get("update_ratio")
    if norm is not None and size is not None and ratio is not None and 0 < size < math.inf and 0 < ratio < _NO_WEIGHTS:
        derived[PROPORTION] = norm * ratio / size
    return derived


def _is_long(ratio: float) -> bool:
    return LONG_UPDATE_RATIO < ratio < _NO_WEIGHTS or ratio == math.inf


def _overshoots(ratio: float) -> bool:
    return ratio > LONG_OVERSHOOT


def _is_out_of_proportion(ratio: float) -> bool:
    return ratio > OUT_OF_PROPORTION


def first_long_step(history: History) -> int | None:
    """Return the first step that was long by its update ratio or by its overshoot, or None."""
    found = [(name, history.first(name, condition)) for name, condition in (("update_ratio", _is_long), (OVERSHOOT, _overshoots))]
    return min((history.steps(name)[place] for name, place in found if place is not None), default=None)


def out_of_proportion(history: History) -> tuple[int, float] | None:
    """Return (step, gradient norm over weight norm) of the first gradient that is out of proportion to the weights, or None.

    A gradient that became so after a long step is what that step has done, and does not count.
    """
    place = history.first(PROPORTION, _is_out_of_proportion)
    if place is None:
        return None
    step = history.steps(PROPORTION)[place]
    long_step = first_long_step(history)
    return None if long_step is not None and long_step < step else (step, history.values(PROPORTION)[place])


def mostly_noise(history: History) -> bool:
    """Return whether the gradient is known to drown in its noise: then a loss that stands still says nothing about the steps."""
    recent = zip(history.values("gradient_noise_scale")[-20:], history.values("batch_size")[-20:], strict=False)
    batches = sorted(noise / batch for noise, batch in recent if batch > 0 and not math.isnan(noise))
    return bool(batches) and batches[len(batches) // 2] > NOISE_OVER_BATCH
