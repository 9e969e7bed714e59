"""Group D, step size and curvature."""

from __future__ import annotations

import math

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.derived import LONG_OVERSHOOT, LONG_UPDATE_RATIO, first_long_step, out_of_proportion, overshoot
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median


class LearningRateTooHigh(Rule):
    """The steps are too long: they overshoot, and the loss rises or does not come down.

    What it is: along its own gradient a mini-batch loss falls by e g'g - 1/2 e^2 g'Hg for a plain step with learning rate e. When the
    second term is larger than the first, the step makes the loss worse.

    Why it is bad: the loss rises, or the weights are thrown to a place where nothing learns any more (dead units).

    How to be sure: the curvature term is above the gradient term, or a single step changes the weights by a large share of their
    norm, and the loss is above where it started.

    How to mend it: a lower learning rate. `2 / curvature_along_gradient` is the limit for a plain step along the gradient, half of it is
    the best length.

    When to ignore it: at the edge of stability and in the first steps of a large learning rate ("catapult") the loss rises for a few steps
    and then falls below where it was; such a rise is not reported.

    Source: A. Lewkowycz and others, The large learning rate phase of deep learning: the catapult mechanism, 2020.
    """

    code = "CL401"
    name = "learning-rate-too-high"
    severity = "error"
    needs = ("loss", "update_ratio")
    follows_from = ("exploding-gradients",)
    healthy = "No step was so long that it raised the loss for good."

    def check(self, history: History) -> Alert | None:
        losses = history.values("loss")
        if len(losses) < 3 or first_long_step(history) is None or out_of_proportion(history) is not None:
            return None  # an exploding gradient is a fault of its own
        start = median(losses[:3])
        at_start = losses[0] if math.isfinite(losses[0]) else start
        overshoots = [ratio for _, ratio in overshoot(history)]
        ratios = finite(history.values("update_ratio"))
        recent = losses[-10:]
        rose = sum(not loss <= 2 * at_start for loss in recent) >= 2 and median(losses[-2:]) > 1.2 * at_start
        overflowed = any(not math.isfinite(loss) for loss in recent)
        stuck = len(losses) >= 30 and median(losses[-10:]) > 0.95 * at_start
        if not (rose or overflowed or stuck):
            return None
        return self._alert(history, at_start, recent, overshoots, ratios)

    def _alert(self, history: History, at_start: float, recent: list[float], overshoots: list[float], ratios: list[float]) -> Alert:
        rate = history.values("learning_rate")
        curvatures = finite([value for value in history.values("curvature_along_gradient")[:5] if value > 0])
        worst = max(finite(recent), default=math.inf)
        changed = max(ratios, default=math.nan)
        parts = [f"one step changed the weights by up to {changed:.0%} of their norm"]
        if overshoots:
            parts.append(f"the curvature term of a step was up to {max(overshoots):.2g} times its gradient term")
        advice = "Lower the learning rate by a factor of 10 and watch the update ratio: about 1e-3 to 1e-2 is usual."
        evidence = {"loss at start": at_start, "highest recent loss": worst, "update ratio": changed, "threshold of that": LONG_UPDATE_RATIO}
        if rate:
            evidence["learning rate"] = rate[-1]
        if overshoots:
            evidence.update({"curvature term over gradient term": max(overshoots), "threshold of the terms": LONG_OVERSHOOT})
        if curvatures and rate:
            limit = 2 / median(curvatures)
            evidence["limit of a plain step at the start"] = limit
            suggestion = min(limit / 4, rate[-1] / 10)
            advice = (
                f"Lower the learning rate from {rate[-1]:.3g} to about {suggestion:.2g}: at the start a plain gradient step could be "
                f"{limit:.2g} long before it raises the loss, and momentum makes steps longer."
            )
        return self.alert(
            history,
            cause=f"The steps are too long: {' and '.join(parts)}. The loss started at {at_start:.3g} and is {recent[-1]:.3g} now.",
            advice=advice,
            evidence=evidence,
            confidence=0.9,
        )


class LearningRateTooLow(Rule):
    """The steps are so short that nothing is learnt.

    What it is: each update changes the weights by less than a hundred-thousandth of their norm, curvature plays no role at that length, and
    the loss does not move.

    Why it is bad: training would need many times the steps.

    How to be sure: the update ratio is below 1e-5, the curvature term of a step is a tiny share of its gradient term, and the loss
    has stayed where it began.

    How to mend it: raise the learning rate, by a factor of 10 at a time, until the update ratio is about 1e-3.

    When to ignore it: during warm-up, at the end of a schedule, or when a trained model is fine-tuned gently.
    """

    code = "CL402"
    name = "learning-rate-too-low"
    severity = "warning"
    needs = ("loss", "update_ratio")
    healthy = "The steps are long enough to change the weights."

    first_step = 50
    smallest_ratio = 1e-5

    def check(self, history: History) -> Alert | None:
        losses, ratios = history.values("loss"), finite(history.values("update_ratio"))
        rates = history.values("learning_rate")
        if history.step < self.first_step or len(ratios) < 5 or len(losses) < 40 or not rates:
            return None
        # Never longer than now: otherwise this is warm-up or the end of a schedule.
        if rates[-1] <= 0 or max(rates) > 1.5 * rates[-1] or min(rates[-20:]) < 0.95 * rates[-1]:
            return None
        ratio = median(ratios)
        terms = median([value for _, value in overshoot(history)])
        moved = abs(median(losses[-20:]) - median(losses[:20])) / max(abs(median(losses[:20])), 1e-12)
        if not (0 < ratio < self.smallest_ratio and moved < 0.05) or terms > 1e-2:
            return None
        factor = 10 ** round(math.log10(1e-3 / ratio))
        return self.alert(
            history,
            cause=(
                f"Each step changes the weights by {ratio:.1g} of their norm, and after {history.step + 1} steps the loss is where it began "
                f"({median(losses[:20]):.3g} to {median(losses[-20:]):.3g})."
            ),
            advice=f"Raise the learning rate from {rates[-1]:.3g}, up to {rates[-1] * factor:.1g} for an update ratio of about 1e-3.",
            evidence={
                "update ratio": ratio,
                "threshold": self.smallest_ratio,
                "relative change of the loss": moved,
                **({} if math.isnan(terms) else {"curvature term over gradient term": terms}),
                "learning rate": rates[-1],
            },
            confidence=0.9,
        )


class IllConditioning(Rule):
    """The loss is steep in few directions and flat in the others, and the steep ones dictate the step.

    What it is: a gradient step is limited by the sharpest direction (length 2/largest eigenvalue), while progress must come from the
    flat ones. Then the curvature term 1/2 e^2 g'Hg takes back a good part of what the gradient term e g'g promises, step after
    step, and the gradient norm does not fall although the loss hardly moves.

    Why it is bad: training crawls. A larger learning rate diverges, a smaller one is slower still.

    How to be sure: the two Taylor terms stay comparable, the gradient norm stays up, the loss stays put, and the largest eigenvalue holds
    a large share of the Hessian trace.

    How to mend it: centre and scale the inputs, add batch or layer normalisation, use an optimizer that preconditions (Adam).

    When to ignore it: when the loss falls. About one outlier eigenvalue per class is normal.

    Source: I. Goodfellow, Y. Bengio, A. Courville, Deep Learning, 2016, section 8.2.1.
    """

    code = "CL403"
    name = "ill-conditioning"
    severity = "warning"
    needs = ("loss", "grad_norm", "taylor_curvature_term", "taylor_gradient_term")
    healthy = "The curvature term of the steps is small, or the loss falls all the same."

    steps = 60
    measured = 12
    share_of_gradient_term = 0.05
    share_of_trace = 0.4

    def check(self, history: History) -> Alert | None:
        terms = overshoot(history)
        if len(terms) < self.measured or history.step < self.steps or first_long_step(history) is not None:
            return None  # a run that has overshot is where its steps have thrown it
        begin = history.step - max(self.steps, history.step // 2)
        recent = [value for step, value in terms if step >= begin]
        losses = self._since(history, "loss", begin)
        norms = self._since(history, "grad_norm", begin)
        if len(recent) < self.measured or len(norms) < self.measured or len(losses) < self.measured:
            return None
        term = median(recent)
        third = len(losses) // 3
        early_loss, late_loss = median(losses[:third]), median(losses[-third:])
        early_norm, late_norm = median(norms[: len(norms) // 3]), median(norms[-(len(norms) // 3) :])
        # Neither since half-time nor since the beginning: training that has converged stands still, too.
        beginning = median(history.values("loss")[:20])
        stands_still = 0.9 * early_loss < late_loss < 1.1 * early_loss and late_loss > 0.7 * beginning
        if not (self.share_of_gradient_term < term < 1.5 and late_norm > 0.6 * early_norm and stands_still):
            return None
        share = self._share_of_trace(history)
        outlying = share is not None and share > self.share_of_trace
        if not outlying and term < 4 * self.share_of_gradient_term:
            return None  # without an outlier in the spectrum only a strong sign counts
        outlier = "" if not outlying else f" One eigenvalue holds {share:.0%} of the Hessian trace."
        return self.alert(
            history,
            cause=(
                f"The curvature term takes back {term:.0%} of what the gradient term promises, the gradient norm stays at {late_norm:.3g}, and "
                f"the loss stands still at {late_loss:.3g}.{outlier}"
            ),
            advice=(
                "Centre and scale the inputs, inputs = (inputs - mean) / standard_deviation; add nn.BatchNorm or nn.LayerNorm; or use an "
                "optimizer that preconditions, such as torch.optim.AdamW."
            ),
            evidence={
                "curvature term over gradient term": term,
                "threshold": self.share_of_gradient_term,
                "gradient norm early": early_norm,
                "gradient norm late": late_norm,
                "loss early": early_loss,
                "loss late": late_loss,
                **({} if share is None else {"largest eigenvalue over trace": share, "threshold of that": self.share_of_trace}),
            },
            confidence=0.9 if outlying else 0.8,
        )

    @staticmethod
    def _since(history: History, name: str, begin: int) -> list[float]:
        return finite([value for step, value in zip(history.steps(name), history.values(name), strict=True) if step >= begin])

    @staticmethod
    def _share_of_trace(history: History) -> float | None:
        shares = [largest / trace for _, largest, trace in history.pairs("max_eigenvalue", "hessian_trace") if largest > 0 and trace > 0]
        return min(median(shares[-20:]), 1.0) if len(shares) >= 5 else None
