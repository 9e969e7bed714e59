"""Group F, precision and parallelism."""

from __future__ import annotations

from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median
from cockpit_lite.diagnosis.wording import in_words


class Float16Overflow(Rule):
    """The gradient scaler halves its scale again and again: half precision overflows at every step.

    What it is: a scaler multiplies the loss so that small gradients survive in float16, and halves the factor where something
    overflows. When it halves again and again, something is not finite at any scale.

    Why it is bad: every one of these steps is skipped, and at a small scale gradients are lost at the other end.

    How to be sure: print `scaler.get_scale()`.

    How to mend it: bfloat16, which has the range of float32 and needs no scaler; or find the operation that overflows (a softmax
    over large logits, a sum of squares, an epsilon that float16 rounds to zero).

    When to ignore it: while the scaler searches in its first steps.

    Source: P. Micikevicius and others, Mixed precision training, 2018.
    """

    code = "CL601"
    name = "fp16-overflow"
    severity = "error"
    needs = ("loss_scale",)
    healthy = "The gradient scaler has found a scale."
    passes = True

    halvings = 5

    def check(self, history: History) -> Alert | None:
        scales = history.values("loss_scale")[-20:]
        if len(scales) < 2 or not scales[-1] > 0:
            return None
        begin = history.values("loss_scale")[0]
        fell = max(scales) / scales[-1] >= 2**self.halvings and history.step > 20
        if not fell and not scales[-1] < 1:
            return None
        return self.alert(
            history,
            cause=(
                f"The loss scale fell from {in_words(max(begin, *scales))} to {in_words(scales[-1])}: half precision overflows "
                "again and again."
            ),
            advice="Use torch.autocast(dtype=torch.bfloat16) without a scaler, or look for the operation that overflows.",
            evidence={"loss scale": scales[-1], "it was": max(begin, *scales)},
            confidence=0.9,
        )


class LogitDrift(Rule):
    """The logits drift away all together.

    What it is: adding a constant to all logits of a row changes nothing in the loss, so nothing holds them; their log-sum-exp
    grows without end.

    Why it is bad: in half precision large logits lose their differences, and in the end overflow.

    How to be sure: look at the log-sum-exp of the outputs over time.

    How to mend it: a penalty, `1e-4 * logits.logsumexp(-1).square().mean()` (z-loss), or weight decay on the last layer.

    When to ignore it: a head that has become sure has a large log-sum-exp as well; it stops growing.

    Source: A. Chowdhery and others, PaLM, 2022, section 5.
    """

    code = "CL602"
    name = "logit-drift"
    severity = "warning"
    needs = ("logit_log_sum", "loss")
    follows_from = ("learning-rate-too-high", "exploding-gradients")
    healthy = "The log-sum-exp of the logits stays in bounds."
    passes = True

    first_step = 50
    measured = 15
    least = 30.0
    factor = 4.0

    def check(self, history: History) -> Alert | None:
        if history.step < self.first_step:
            return None
        values = finite(history.sample("logit_log_sum"))
        if len(values) < self.measured:
            return None
        third = len(values) // 3
        last = median(values[2 * third :])
        if last < self.least:
            return None
        parts = [median(values[:third]), median(values[third : 2 * third]), last]
        # Growing throughout, and not slower at the end: a head that has become sure levels off.
        grows = parts[0] < parts[1] < parts[2] and parts[2] - parts[1] > 0.7 * (parts[1] - parts[0])
        losses = history.values("loss")
        falls = median(losses[-10:]) < 0.8 * median(history.sample("loss")[: max(third, 1)])
        if not grows or parts[2] < self.factor * max(parts[0], 1.0) or falls:
            return None
        return self.alert(
            history,
            cause=f"The log-sum-exp of the logits grew from {in_words(parts[0])} to {in_words(parts[2])} and goes on growing.",
            advice="Add a penalty to the loss, 1e-4 * logits.logsumexp(-1).square().mean(), or weight decay on the last layer.",
            evidence={"log sum exp at first": parts[0], "log sum exp": parts[2], "threshold": self.least},
            confidence=0.7,
        )


RULES: Sequence[Rule] = (Float16Overflow(), LogitDrift())
