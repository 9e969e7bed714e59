"""Group D, step size and curvature."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.derived import (
    BEST_GAIN,
    LONG_OVERSHOOT,
    LONG_UPDATE_RATIO,
    OVERSHOOT,
    first_long_step,
    mostly_noise,
    out_of_proportion,
)
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median
from cockpit_lite.diagnosis.wording import in_words, share_in_words

#: What the advice aims at: healthy trainings begin with steps of half a per cent to two of the weights' norm.
_FIRST_UPDATE_RATIO = 1e-2


class LearningRateTooHigh(Rule):
    """The steps are too long: they overshoot, and the loss rises or does not come down.

    What it is: along its own gradient a mini-batch loss falls by e g'g - 1/2 e^2 g'Hg for a plain step with learning rate e. When
    the second term is larger than the first, the step makes the loss worse.

    Why it is bad: the loss rises, or the weights are thrown to a place where nothing learns any more (dead units).

    How to be sure: a step changed the weights by a fifth of their norm or more, or its curvature term was twice its gradient
    term. Then the loss doubled and does not fall, or overflowed, or never came back below where it was, or most units of a layer
    are dead since.

    How to mend it: a lower learning rate. `2 / curvature_along_gradient` is the limit for a plain step along the gradient, half
    of it is the best length.

    When to ignore it: at the edge of stability and in the first steps of a large learning rate ("catapult") the loss rises for a
    few steps and then falls below where it was; a rise that turns by itself is not reported. Of an optimizer that does not step
    along the gradient, such as Adam, only the size of its steps is looked at.

    Source: A. Lewkowycz and others, The large learning rate phase of deep learning: the catapult mechanism, 2020.
    """

    code = "CL401"
    name = "learning-rate-too-high"
    severity = "error"
    needs = ("loss", "update_ratio")
    follows_from = ("exploding-gradients", "residual-growth")
    healthy = "No step was so long that it raised the loss for good."
    passes = True

    #: Steps that a rise must last; that of a catapult has turned by then.
    patience = 20
    #: Steps after which a loss that jumped and never came back below where it was is taken for lost.
    lost_after = 30
    within = 60

    def check(self, history: History) -> Alert | None:
        losses, long_step = history.values("loss"), first_long_step(history)
        if len(losses) < 3 or long_step is None or out_of_proportion(history) is not None:
            return None  # an exploding gradient is a fault of its own
        place = history.place("loss", long_step + 1)  # the loss of the step itself was computed before it
        before, after = finite(losses[max(place - 20, 0) : place]), losses[place:][-self.patience :]
        if not before or not after:
            return None
        level = max(before)  # with the noise of the loss: one low batch is no level
        doubled = level + abs(level)
        first_window = losses[place : place + self.within]
        jumped = any(not loss <= doubled for loss in first_window)
        falls = self._falls(losses)  # by itself, as after a catapult
        above = sum(loss > doubled for loss in after)
        rose = len(after) == self.patience and above >= 0.9 * self.patience and not falls
        late = median(after[-10:])
        lost = len(losses) - place >= self.lost_after and late > level - 0.05 * abs(level) and not falls
        overflowed = jumped and any(not math.isfinite(loss) for loss in after)
        killed = len(losses) - place >= self.lost_after and self._killed(history, long_step)
        if not (rose or overflowed or (jumped and (lost or killed))):
            return None
        return self._alert(history, long_step, level, first_window, losses[-1])

    @staticmethod
    def _killed(history: History, long_step: int) -> bool:
        """Return whether the step has cost a layer most of its units for good: the loss may come back, what is lost does not."""
        place = history.place("dead_units", long_step + 1)
        before, after = history.values("dead_units")[max(place - 5, 0) : place], history.values("dead_units")[place:][-10:]
        return len(after) == 10 and median(before) < 0.25 and min(after) > 0.5

    @staticmethod
    def _falls(losses: Sequence[float]) -> bool:
        late, early = median(losses[-5:]), median(losses[-10:-5])
        return late < early - 0.3 * abs(early)

    def _alert(self, history: History, long_step: int, level: float, after: Sequence[float], now: float) -> Alert:
        highest = max(finite(after), default=math.inf)
        evidence: dict[str, float] = {"loss before": level, "highest loss after": highest, "loss now": now}
        parts = []
        ratio = history.highest("update_ratio")
        if ratio is not None and ratio > LONG_UPDATE_RATIO:
            parts.append(f"one step changed the weights by {share_in_words(ratio)} their norm")
        if ratio is not None:
            evidence.update({"update ratio": ratio, "threshold of that": LONG_UPDATE_RATIO})
        overshoot = history.highest(OVERSHOOT)
        if overshoot is not None:
            evidence.update({"curvature term over gradient term": overshoot, "threshold of the terms": LONG_OVERSHOOT})
            if overshoot > LONG_OVERSHOOT:
                parts.append(f"the curvature term of a step was {in_words(overshoot)} times its gradient term")
        if not parts:  # the highest finite ratio was short: the long one has overflowed
            parts.append(f"the update at step {long_step} has no finite norm")
        advice = "Lower the learning rate by a factor of 10 and watch the update ratio: about 1e-3 to 1e-2 is usual."
        rate = history.last("learning_rate")
        if rate is not None and 0 < rate < math.inf:
            evidence["learning rate"] = rate
            advice = self._advice(history, long_step, rate, evidence)
        return self.alert(
            history,
            cause=(
                f"The steps are too long: {' and '.join(parts)}. The loss was {in_words(level)} up to step {long_step} and "
                f"is {in_words(now)} now."
            ),
            advice=advice,
            evidence=evidence,
            confidence=0.9,
        )

    @staticmethod
    def _advice(history: History, long_step: int, rate: float, evidence: dict[str, float]) -> str:
        """Return a learning rate to start again with, and add to the evidence what it was computed from."""
        suggestion, reason = rate / 10, "watch the update ratio then: about 1e-3 to 1e-2 is usual"
        place = history.place("curvature_along_gradient", long_step + 1)
        before = finite(history.values("curvature_along_gradient")[max(place - 5, 0) : place])
        curvatures = [value for value in before if value > 0]
        place = history.place("update_ratio", long_step)
        ratio = next(iter(history.values("update_ratio")[place : place + 1]), math.nan)
        if curvatures and history.gradient_steps:
            limit = evidence["limit of a plain step"] = 2 / median(curvatures)
            # Momentum adds up steps in the same direction to 1 / (1 - momentum) times their length.
            suggestion = min(suggestion, limit / 4 * (1 - history.momentum))
            reason = f"before the loss rose, {limit:.2g} was the limit for a plain gradient step"
            if history.momentum:
                reason += f", and a momentum of {history.momentum:g} makes steps {1 / (1 - history.momentum):.3g} times longer"
        elif LONG_UPDATE_RATIO < ratio < math.inf:
            suggestion = min(suggestion, rate * _FIRST_UPDATE_RATIO / ratio)
        evidence["suggested learning rate"] = suggestion
        return f"Start again with a learning rate of about {suggestion:.1g} instead of {rate:.3g}: {reason}."


class LearningRateTooLow(Rule):
    """The steps are so short that nothing is learnt.

    What it is: each update changes the weights by less than a hundred-thousandth of their norm, curvature plays no role at that
    length, and the loss does not move.

    Why it is bad: training would need many times the steps.

    How to be sure: the update ratio is below 1e-5, the curvature term of a step is a tiny share of its gradient term, and the
    loss has stayed where it began.

    How to mend it: raise the learning rate until the update ratio is about 1e-2 at the start, 1e-3 later on.

    When to ignore it: during warm-up, at the end of a schedule, or when a trained model is fine-tuned gently. Where the
    per-sample statistics are measured and say that the gradient is mostly noise, as it is around a minimum, it is not reported,
    unless the loss is that of a guess.
    """

    code = "CL402"
    name = "learning-rate-too-low"
    severity = "warning"
    needs = ("loss", "update_ratio")
    healthy = "The steps are long enough to change the weights."
    passes = True

    first_step = 50
    smallest_ratio = 1e-5
    #: A loss over that of a guess among the classes at which nothing has been learnt yet.
    no_better_than_a_guess = 0.9

    def check(self, history: History) -> Alert | None:
        if history.step < self.first_step:
            return None
        losses, ratios = history.values("loss"), finite(history.values("update_ratio")[-20:])
        rate, highest = history.last("learning_rate"), history.highest("learning_rate")
        if len(ratios) < 5 or len(losses) < 40 or rate is None or highest is None:
            return None
        ratio = median(ratios)
        if not 0 < ratio < self.smallest_ratio:
            return None
        early, late = median(losses[:20]), median(losses[-20:])
        moved = abs(late - early) / max(abs(early), 1e-12)
        if not moved < 0.05:
            return None
        # Never longer than now, and as long for half of the run: otherwise this is warm-up or the end of a schedule.
        steady = min(history.sample("learning_rate", begin=history.step // 2), default=math.nan)
        if rate <= 0 or highest > 1.5 * rate or not steady > 0.95 * rate:
            return None
        if mostly_noise(history) and not median(history.values("loss_over_uniform")[-20:]) > self.no_better_than_a_guess:
            return None  # around a minimum the gradient is noise, and short steps do no harm; where a guess is, there is none
        terms = median(history.values(OVERSHOOT)[-20:])
        if terms > 1e-2:
            return None
        suggestion = min(rate * min(_FIRST_UPDATE_RATIO / ratio, 1e7), self._limit(history))
        return self.alert(
            history,
            cause=(
                f"Each step changes the weights by {ratio:.1g} of their norm, and after {history.step + 1} steps the loss is "
                f"where it began ({in_words(early)} then, {in_words(late)} now)."
            ),
            advice=(
                f"Raise the learning rate from {rate:.3g} to about {suggestion:.1g}, for the update ratio that training usually "
                f"begins with, about {_FIRST_UPDATE_RATIO:.0e}; if the loss rises, divide it by 3."
            ),
            evidence={
                "update ratio": ratio,
                "threshold": self.smallest_ratio,
                "relative change of the loss": moved,
                **({} if math.isnan(terms) else {"curvature term over gradient term": terms}),
                "learning rate": rate,
                "suggested learning rate": suggestion,
            },
            confidence=0.9,
        )

    @staticmethod
    def _limit(history: History) -> float:
        """Return the learning rate of the best plain step along the gradient, as far as it is known."""
        curvature = median([value for value in history.values("curvature_along_gradient")[-20:] if value > 0])
        return (1 - history.momentum) / curvature if history.gradient_steps and curvature > 0 else math.inf


class IllConditioning(Rule):
    """The loss is steep in few directions and flat in the others, and the steep ones dictate the step.

    What it is: a gradient step is limited by the sharpest direction (length 2/largest eigenvalue), while progress must come from
    the flat ones. Then the curvature term 1/2 e^2 g'Hg takes back a good part of what the gradient term e g'g promises, step
    after step, and the gradient norm does not fall although the loss hardly moves.

    Why it is bad: training crawls. A larger learning rate diverges, a smaller one is slower still.

    How to be sure: the two Taylor terms stay comparable, the gradient norm stays up, the loss stays put, even the best step along
    the gradient, (g'g)^2 / (2 g'Hg), would win only a few per cent of the loss, and the largest eigenvalue may hold a large share
    of the Hessian trace.

    How to mend it: centre and scale the inputs, add batch or layer normalisation, use an optimizer that preconditions (Adam).

    Where the spectrum was measured and one eigenvalue outweighs the others it is a warning, otherwise a note: a language model
    that has learnt the frequencies of its tokens and nothing else yet stands still in much the same way.

    When to ignore it: when the loss falls. About one outlier eigenvalue per class is normal; one that outweighs all others is
    not. A loss that stands still in its noise, as with labels that cannot be learnt, has comparable terms as well, but there each
    batch could be fitted better by a step along its own gradient; it is not reported.

    Source: I. Goodfellow, Y. Bengio, A. Courville, Deep Learning, 2016, section 8.2.1.
    """

    code = "CL403"
    name = "ill-conditioning"
    severity = "warning"
    needs = ("loss", "grad_norm", "taylor_curvature_term", "taylor_gradient_term")
    healthy = "The curvature term of the steps is small, or the loss falls all the same."
    passes = True

    steps = 60
    measured = 12
    share_of_gradient_term = 0.2
    share_of_trace = 0.4
    share_of_loss = 0.07

    def does_not_apply(self, history: History) -> str:
        if not history.optimizers or history.gradient_steps:
            return ""
        return f"the curvature terms describe a plain gradient step, and {' and '.join(history.optimizers)} takes others"

    def check(self, history: History) -> Alert | None:
        if history.step < self.steps or first_long_step(history) is not None or mostly_noise(history):
            return None  # a run that has overshot is where its steps have thrown it, and noise stands still anywhere
        begin = history.step - max(self.steps, history.step // 2)
        terms = finite(history.sample(OVERSHOOT, begin))
        term = median(terms)
        if len(terms) < self.measured or not self.share_of_gradient_term < term < 1.5:
            return None
        losses, norms = (finite(history.sample(name, begin)) for name in ("loss", "grad_norm"))
        if min(len(losses), len(norms)) < self.measured:
            return None
        early_loss, late_loss = _first_and_last_third(losses)
        early_norm, late_norm = _first_and_last_third(norms)
        # Neither since half-time nor since the beginning: training that has converged stands still, too.
        beginning = median(history.values("loss")[:20])
        stands_still = abs(late_loss - early_loss) < 0.1 * abs(early_loss) and late_loss > beginning - 0.3 * abs(beginning)
        if not (stands_still and late_norm > 0.6 * early_norm):
            return None
        # Where nothing is won on average the two terms are always comparable: their ratio is then the share of signal in the
        # gradient, also where the labels cannot be learnt. Under ill-conditioning even the best step would win next to nothing.
        gain = median(history.sample(BEST_GAIN, begin)) / max(abs(late_loss), 1e-12)
        if not gain < self.share_of_loss:
            return None
        share = self._share_of_trace(history)
        outlying = share is not None and share > self.share_of_trace
        outlier = f" One eigenvalue holds {share:.0%} of the Hessian trace." if outlying else ""
        return self.alert(
            history,
            cause=(
                f"The curvature term takes back {share_in_words(term)} what the gradient term promises, the gradient norm stays "
                f"at {late_norm:.3g}, and the loss stands still at {late_loss:.3g}: even a step of the best length would win "
                f"only {gain:.1%} of it.{outlier}"
            ),
            advice=(
                "Centre and scale the inputs, inputs = (inputs - mean) / standard_deviation; add nn.BatchNorm or nn.LayerNorm; "
                "or use an optimizer that preconditions, such as torch.optim.AdamW."
            ),
            evidence={
                "curvature term over gradient term": term,
                "threshold": self.share_of_gradient_term,
                "gain of the best step over the loss": gain,
                "threshold of the gain": self.share_of_loss,
                "gradient norm early": early_norm,
                "gradient norm late": late_norm,
                "loss early": early_loss,
                "loss late": late_loss,
                **({} if share is None else {"largest eigenvalue over trace": share, "threshold of that": self.share_of_trace}),
            },
            confidence=0.9 if outlying else 0.6,
            severity="warning" if outlying else "note",
        )

    @staticmethod
    def _share_of_trace(history: History) -> float | None:
        """Return the share of the largest eigenvalue of the Hessian trace; both are measured on the same steps."""
        largest, trace = (history.values(name)[-20:] for name in ("max_eigenvalue", "hessian_trace"))
        shares = [top / whole for top, whole in zip(largest, trace, strict=False) if top > 0 and whole > 0]
        return min(median(shares), 1.0) if len(shares) >= 5 else None


def _first_and_last_third(values: Sequence[float]) -> tuple[float, float]:
    third = len(values) // 3
    return median(values[:third]), median(values[-third:])
