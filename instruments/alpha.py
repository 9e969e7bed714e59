"""Alpha: where on the parabola of the loss did the step land?

    alpha = q'(1) / |q'(0)|   if q'(1) > q'(0),   else -1

q is the most likely parabola along the step d = theta_{t+1} - theta_t that was really taken, with momentum, clipping and
adaptive learning rates in it. It is fitted to four noisy numbers, the loss f and its slope s = d'G at either end (0 on batch t,
1 on batch t+1), taken to be independent, by least squares with their variances: v of the slopes and w of the losses. Then

    r = f_1 - f_0 - (s_0 + s_1) / 2,   S = w_0 + w_1 + (v_0 + v_1) / 4,   q'(0) = s_0 + v_0 r / 2S,   q'(1) = s_1 + v_1 r / 2S

since the losses tell about a parabola only that its mean slope is f_1 - f_0. Variances are over the samples: of the mini-batch
loss (N times the variance of the samples' contributions to it) and of the slope (the same for d'c_n). The slope's is taken at the
end of the step and holds, per sample, for the start as well: there the step is not known while the samples can be told apart. Of
a batch of 64 samples and more it is taken from every so manieth one, 32 at least: that tells a variance to a quarter, and the
error of alpha to an eighth; the slopes themselves are of the whole batch.
Between two independent batches w is large beside what a usual step changes, and r counts little; it counts for long steps.

-1: no move, or no curvature to be seen (the loss is straight or concave along the step); 0: the minimum along the step; +1: as
high on the other side as it began; beyond: the step went up. Between -1 and 0 in the median is usual and healthy; around or above
0 over many steps the learning rate overshoots; close to -1 all the time, it could be larger. Look at many steps: one value is as
noisy as its standard error (delta method) says. Where the losses of the samples are not known the slopes alone say
where the step landed (r / S = 0), and the reading says so; where the samples cannot be told apart its error is not known either.

It takes two measured steps in a row and is written at the second one.

Source: Schneider, Dangel, Hennig, Cockpit: a practical debugging tool for the training of deep neural networks, 2021, section 2
and its appendix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import GRADIENT, LAST_STEP, LOSS, PER_SAMPLE_NORMS, SAMPLE_LOSSES, Instrument, Reading, Readings
from cockpit_lite.probes.last_step import inner_product
from cockpit_lite.probes.moments import stacked
from cockpit_lite.step import Step


class Ends(NamedTuple):
    """Values at the start and at the end of a step."""

    start: float
    end: float


class Parabola(NamedTuple):
    """The slopes of a fitted parabola at the ends of a step, and how sure they are.

    Attributes:
        slopes: q' at the ends.
        variances: Of these.
        covariance: Of the one and the other.
    """

    slopes: Ends
    variances: Ends
    covariance: float


def fit(losses: Ends, loss_variances: Ends, slopes: Ends, slope_variances: Ends) -> Parabola:
    """Return the most likely parabola through noisy losses and slopes, which are independent of each other."""
    v = slope_variances
    rest = losses.end - losses.start - (slopes.start + slopes.end) / 2
    spread = loss_variances.start + loss_variances.end + (v.start + v.end) / 4
    if not spread > 0:  # without noise there is nothing to be corrected
        spread = math.inf
    found = Ends(*(slope + variance * rest / (2 * spread) for slope, variance in zip(slopes, v, strict=True)))
    variances = Ends(*(variance - variance * variance / (4 * spread) for variance in v))
    return Parabola(found, variances, -v.start * v.end / (4 * spread))


def alpha(slopes: Ends) -> float:
    """Return where a step landed, from the slopes of the parabola at its start and at its end."""
    start, end = slopes
    if end <= start:
        return -1.0
    return end / abs(start) if start else end * math.inf


def standard_error(parabola: Parabola) -> float:
    """Return the standard error of ``q'(1) / |q'(0)|`` (delta method)."""
    (start, end), variances, covariance = parabola
    if not start:
        return math.inf
    ratio = end / start
    squared = variances.end + ratio * ratio * variances.start - 2 * ratio * covariance
    return math.sqrt(squared) / abs(start) if not squared < 0 else 0.0


def variance_of_sum(contributions: Tensor, count: int | None = None) -> Tensor:
    """Return the variance of what ``count`` independent samples add up to, from the contributions of all or some of them."""
    return (contributions.numel() if count is None else count) * contributions.var(correction=1)


class Alpha(Instrument):
    """Writes ``alpha``, without unit."""

    name = "alpha"
    needs = (LOSS, GRADIENT, LAST_STEP, PER_SAMPLE_NORMS, SAMPLE_LOSSES)
    preset = "standard"

    def measure(self, step: Step) -> Readings:
        last = step.last_step
        slopes = [last.slope, inner_product(last.update, step.gradient)]
        try:
            contributions = step.per_sample_slopes
        except NotMeasured as reason:
            return {"alpha": _without_error(slopes, str(reason))}
        if contributions.numel() < 2:
            return {"alpha": _without_error(slopes, "the batch holds one sample")}
        losses, note = self._losses(step)
        now = step.per_sample.batch_size
        then = now if last.sample_losses is None else last.sample_losses.numel()
        if not then:
            return {"alpha": _without_error(slopes, "the batch before held no sample")}
        numbers = stacked([*slopes, variance_of_sum(contributions, now), *losses])
        finish = partial(_finish, samples_then_and_now=now / then, note=note)
        return {"alpha": Reading(numbers, kind="estimated", on_host=finish)}

    @staticmethod
    def _losses(step: Step) -> tuple[list[Tensor], str | None]:
        """Return the losses at both ends and their variances; none, and a note, if these are not known."""
        before = step.last_step.sample_losses
        reason = ""
        try:
            now = step.sample_losses
            if before is None:
                reason = "the losses of the samples were not known on the step before"
            elif min(now.numel(), before.numel()) < 2:
                reason = "a batch holds one sample"
        except NotMeasured as obstacle:
            reason = str(obstacle)
        if reason or before is None:
            return [], f"from the slopes alone, because {reason}"
        return [before.sum(), now.sum(), variance_of_sum(before), variance_of_sum(now)], None


def _finish(numbers: Sequence[float], samples_then_and_now: float, note: str | None) -> Reading:
    """Return alpha and its error from the slopes at both ends, the variance of the second, and what is known of the losses."""
    start, end, variance, *of_losses = numbers
    losses, loss_variances = Ends(0.0, 0.0), Ends(0.0, math.inf)
    if of_losses:
        losses, loss_variances = Ends(*of_losses[:2]), Ends(*of_losses[2:])
    parabola = fit(losses, loss_variances, Ends(start, end), Ends(variance * samples_then_and_now, variance))
    return Reading(alpha(parabola.slopes), kind="estimated", standard_error=standard_error(parabola), note=note)


def _without_error(slopes: Sequence[Tensor], reason: str) -> Reading:
    note = f"from the slopes alone and without an error, because {reason}"
    return Reading(stacked(slopes), kind="estimated", note=note, on_host=lambda ends: alpha(Ends(*ends)))
