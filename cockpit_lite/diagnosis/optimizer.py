"""Group D, what acts on the step beside gradient and curvature: decay, clipping, schedule, second moments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median
from cockpit_lite.diagnosis.wording import in_words


class WeightDecayTooStrong(Rule):
    """Weight decay, not the data, decides where the weights go.

    What it is: each step pulls the weights towards zero by a share of their size. Where that pull is larger than the gradient,
    the weights shrink whatever the data say.

    Why it is bad: the net forgets faster than it learns; its outputs go to a constant.

    How to be sure: the norm of the weights falls steadily, and the pull of the decay is larger than the gradient.

    How to mend it: 1e-4 to 1e-2 is usual for SGD, 1e-2 to 1e-1 for AdamW; leave biases and normalisation layers out.

    When to ignore it: at the minimum of a regularised loss decay and gradient are in balance; there the norm of the weights stays
    as it is, and nothing is reported.

    Source: I. Loshchilov and F. Hutter, Decoupled weight decay regularization, 2019.
    """

    code = "CL404"
    name = "weight-decay-too-strong"
    severity = "warning"
    needs = ("weight_decay_ratio", "update_size", "update_ratio", "loss")
    healthy = "Weight decay pulls less than the gradient, or is in balance with it."
    passes = True

    measured = 10
    #: The share of their norm that the weights have lost.
    lost = 0.15
    #: So many times the gradient over the first measured steps: an improving loss is no excuse.
    from_the_start = 3.0

    def check(self, history: History) -> Alert | None:
        ratios = finite(history.values("weight_decay_ratio")[-self.measured :])
        if len(ratios) < self.measured or not median(ratios) > 0.9:
            return None
        norms = _weight_norms(history)
        if len(norms) < self.measured:
            return None
        recent = norms[-self.measured :]
        falling = sum(later < earlier for earlier, later in itertools.pairwise(recent))
        losses = history.values("loss")
        # Decay that outweighs the gradient where that is largest, at the start, costs much even where the loss falls.
        at_start = median(history.values("weight_decay_ratio")[: self.measured])
        improved = at_start < self.from_the_start and median(losses[-10:]) < 0.8 * median(losses[:5])
        if falling < 0.8 * (len(recent) - 1) or not recent[-1] < (1 - self.lost) * max(norms) or improved:
            return None
        decay = history.last("weight_decay")
        suggestion = {"suggested weight decay": decay / max(10 * median(ratios), 10)} if decay else {}
        value = f" from {decay:.3g} to about {suggestion['suggested weight decay']:.1g}" if decay else ""
        return self.alert(
            history,
            cause=(
                f"Weight decay pulls {in_words(median(ratios))} times as hard as the gradient, and the norm of the weights fell "
                "from "
                f"{in_words(max(norms))} to {in_words(recent[-1])} while the loss stayed at {in_words(median(losses[-10:]))}."
            ),
            advice=f"Lower the weight decay{value}.",
            evidence={
                "decay over gradient": median(ratios),
                "threshold": 0.9,
                "weight norm": recent[-1],
                "it was": max(norms),
                **suggestion,
            },
            confidence=0.9,
        )


class ClippingTooTight(Rule):
    """Nearly every gradient is clipped to a small share of itself.

    What it is: the clipping threshold is far below the usual norm of the gradient, so it is the threshold that sets the length of
    every step.

    Why it is bad: training is a walk of fixed small steps; the learning rate no longer means what it says.

    How to be sure: the clip ratio is below 1/20 at nearly every step.

    How to mend it: a threshold at the 90 % quantile of the gradient norm.

    When to ignore it: with Adam and its kin, which divide by the size of the gradient anyway; these are not looked at.

    Source: R. Pascanu, T. Mikolov, Y. Bengio, 2013.
    """

    code = "CL405"
    name = "clipping-too-tight"
    severity = "warning"
    needs = ("clip_ratio", "grad_norm")
    healthy = "Clipping leaves most gradients as they are."
    passes = True

    first_step = 20
    measured = 12
    ratio = 0.05
    share = 0.95

    def does_not_apply(self, history: History) -> str:
        if not history.optimizers or history.gradient_steps:
            return ""
        return f"{' and '.join(history.optimizers)} may divide by the size of the gradient, and clipping then changes little"

    def check(self, history: History) -> Alert | None:
        ratios = history.values("clip_ratio")[-40:]
        if history.step < self.first_step or len(ratios) < self.measured:
            return None
        clipped = sum(ratio < self.ratio for ratio in ratios) / len(ratios)
        if clipped < self.share:
            return None
        norms = sorted(finite(history.values("grad_norm")[-40:]))
        usual = norms[int(0.9 * (len(norms) - 1))] if norms else math.nan
        return self.alert(
            history,
            cause=(
                f"{clipped:.0%} of the gradients are clipped to less than {self.ratio:.0%} of themselves, usually to "
                f"{median(ratios):.1%}."
            ),
            advice=f"Clip at the 90 % quantile of the gradient norm: clip_grad_norm_(model.parameters(), {usual:.2g}).",
            evidence={
                "share clipped": clipped,
                "threshold": self.share,
                "usual clip ratio": median(ratios),
                "suggested norm to clip at": usual,
            },
            confidence=0.9,
        )


class LearningRateSchedule(Rule):
    """The learning rate does what nobody wants of it: it is gone early, jumps up, or swings.

    What it is: a schedule that counts epochs is stepped every batch, or the other way round; or a resumed run starts its schedule
    again.

    Why it is bad: at a learning rate near zero nothing is learnt any more; a sudden jump throws the weights about.

    How to be sure: look at the learning rate gauge.

    How to mend it: call `scheduler.step()` once an epoch or once a batch, whichever the numbers given to it count.

    When to ignore it: the end of training. Warm-up and warm restarts, which come back to where they began, are not reported.
    """

    code = "CL406"
    name = "learning-rate-schedule"
    severity = "warning"
    needs = ("learning_rate",)
    healthy = "The learning rate neither vanished early nor jumped."

    #: The learning rate counts as gone below this share of its maximum, after so many steps and so large a part of the run.
    gone = 1e-3
    gone_steps = 50
    gone_share = 0.4
    jump = 10.0
    swings = 3

    def check(self, history: History) -> Alert | None:
        rates, highest = history.values("learning_rate"), history.highest("learning_rate")
        if len(rates) < 3 or highest is None or highest <= 0:
            return None
        now, before = rates[-1], rates[-2]
        sample = history.sample("learning_rate")
        jumped = history.step > 20 and before > 0 and now > self.jump * before and now >= highest
        if jumped and (usual := median(sample)) > 0 and now > 3 * usual:
            return self._found(
                history, f"jumped from {before:.2g} to {now:.2g} in one step, and had never been as high", now, highest
            )
        swings = _swings(sample, highest)
        if swings >= self.swings:
            return self._found(history, f"swung {swings} times between its maximum and nearly 0", now, highest)
        since = max(self.gone_steps, int(history.step * self.gone_share))
        # An even sample of those steps ends with the last: where that is not gone they are not.
        if history.step <= since + 5 or now >= self.gone * highest:
            return None
        late = history.sample("learning_rate", begin=history.step - since)
        if late and max(late) < self.gone * highest:
            return self._found(history, f"has been below a thousandth of its maximum for {since} steps", now, highest)
        return None

    def _found(self, history: History, what: str, now: float, highest: float) -> Alert:
        return self.alert(
            history,
            cause=f"The learning rate {what}; it is {now:.2g} now and was {highest:.2g} at most.",
            advice="Call scheduler.step() once an epoch or once a batch, as the scheduler counts, and check its number of steps.",
            evidence={"learning rate": now, "highest learning rate": highest},
            confidence=0.8,
        )


class StaleSecondMoment(Rule):
    """Adam's second moment lags behind the gradient, and the loss jumped.

    What it is: Adam divides by a running mean of the squared gradient. Where the gradient grows faster than that mean follows
    (beta2 close to 1), steps become longer than meant.

    Why it is bad: a loss spike some steps later, from which training does not always recover.

    How to be sure: the second moment ratio rose above 2.3 in the steps before the spike.

    How to mend it: beta2 = 0.95 instead of 0.999, or clipping of the update (as AdaFactor does).

    When to ignore it: in the first twenty steps, which are not looked at.

    Source: M. Wortsman and others, Stable and low-precision training for large-scale vision-language models, 2023.
    """

    code = "CL407"
    name = "stale-second-moment"
    severity = "warning"
    needs = ("second_moment_ratio", "loss")
    follows_from = ("labels-unrelated", "learning-rate-too-high", "learning-rate-schedule", "gradients-not-zeroed")
    healthy = "The second moment follows the gradient, or the loss does not mind."

    first_step = 20
    ratio = 2.3
    within = 10

    def check(self, history: History) -> Alert | None:
        steps, ratios = history.steps("second_moment_ratio"), history.values("second_moment_ratio")
        if history.step < self.first_step + 10 or len(ratios) < 10:
            return None
        recent = [
            (step, ratio)
            for step, ratio in zip(steps[-self.within :], ratios[-self.within :], strict=True)
            if step >= self.first_step
        ]
        usual = median(ratios[:-3])
        high = [(step, ratio) for step, ratio in recent if ratio > self.ratio and ratio > 2 * usual]
        if not high:
            return None
        step, ratio = high[0]
        place = history.place("loss", step)
        before, after = finite(history.values("loss")[max(place - 20, 0) : place]), finite(history.values("loss")[place:])
        if len(before) < 5 or len(after) < 3:
            return None
        level, deviation = median(before), _deviation(before)
        if not median(after[-3:]) > level + max(6 * deviation, 0.3 * abs(level)):
            return None
        return self.alert(
            history,
            step=step,
            cause=(
                f"At step {step} the gradient was {in_words(ratio)} times what Adam's second moment stands for, and the loss "
                "rose from "
                f"{in_words(level)} to {in_words(median(after[-3:]))}."
            ),
            advice="Use betas=(0.9, 0.95), or clip the gradient to 2 times its usual norm.",
            evidence={
                "second moment ratio": ratio,
                "threshold": self.ratio,
                "loss before": level,
                "loss after": median(after[-3:]),
            },
            confidence=0.7,
        )


def _weight_norms(history: History) -> list[float]:
    """Return the norms of the weights at the measured steps, from the size of the updates and their ratio to it."""
    pairs = zip(history.values("update_size")[-200:], history.values("update_ratio")[-200:], strict=False)
    return [size / ratio for size, ratio in pairs if ratio > 0 and math.isfinite(size / ratio)]


def _deviation(values: Sequence[float]) -> float:
    """Return the median absolute deviation, scaled to a standard deviation."""
    middle = median(values)
    return 1.4826 * median([abs(value - middle) for value in values])


def _swings(rates: Sequence[float], highest: float) -> int:
    """Return how often the rate went from nearly its maximum to nearly zero and back up by degrees."""
    count, state, degrees = 0, "", 0
    for rate in rates:
        if rate > 0.9 * highest:
            if state == "low" and degrees:  # a warm restart jumps, it does not climb
                count += 1
            state, degrees = "high", 0
        elif rate < 0.02 * highest:
            state, degrees = "low", 0
        elif state == "low":
            degrees += 1
    return count


RULES: Sequence[Rule] = (WeightDecayTooStrong(), ClippingTooTight(), LearningRateSchedule(), StaleSecondMoment())
