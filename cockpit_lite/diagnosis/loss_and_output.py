"""Group B, loss and output."""

from __future__ import annotations

import math

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule


class NonFinite(Rule):
    """The loss or the gradient is not a number, or infinite.

    What it is: somewhere a computation left the range of floating point numbers: the logarithm of zero, zero divided by
    zero, an overflow. From there on every weight that the gradient reaches becomes NaN at the next step.

    Why it is bad: NaN never goes away by itself. All steps after it are wasted.

    How to be sure: look at the loss and the gradient norm of the steps before. If they grew for some steps, the NaN is a
    consequence (exploding gradients, or a learning rate that is too high); if they were ordinary, one operation or one sample is
    to blame, and `torch.autograd.set_detect_anomaly(True)` names the operation.

    How to mend it: work with logits and fused losses (`cross_entropy`, `binary_cross_entropy_with_logits`) instead of logarithms of
    probabilities, add an epsilon inside square roots and denominators, check the inputs with `torch.isfinite`.

    When to ignore it: a gradient scaler skips steps with infinite gradients on purpose; those are not reported.
    """

    code = "CL208"
    name = "non-finite"
    severity = "error"
    needs = ("loss",)
    follows_from = ("exploding-gradients", "learning-rate-too-high")
    healthy = "Loss and gradient were finite at every step that was looked at."

    def check(self, history: History) -> Alert | None:
        found = [
            (step, name, value)
            for name in ("loss", "grad_norm")
            for step, value in zip(history.steps(name), history.values(name), strict=True)
            if not math.isfinite(value)
        ]
        if not found:
            return None
        step, name, value = min(found, key=lambda item: item[0])
        what = "loss" if name == "loss" else "gradient norm"
        before = [number for at, number in zip(history.steps(name), history.values(name), strict=True) if at < step]
        where = tuple(layer for layer, norm in history.layers("grad_norm").items() if not math.isfinite(norm))
        before_text = f"; the last measured value before was {before[-1]:.4g}" if before else ""
        return self.alert(
            history,
            step=step,
            where=where[-1:] if len(where) < len(history.layers("grad_norm")) else (),
            cause=f"The {what} is {_spelled(value)} at step {step}{before_text}.",
            advice=(
                "Stop: the weights are lost from the next step on. If loss or gradient grew before, lower the learning rate or clip the "
                "gradient; if not, run the step again under torch.autograd.set_detect_anomaly(True), which names the operation."
            ),
            evidence={name: value, "step": step, **({f"{name} before": before[-1]} if before else {})},
        )


def _spelled(value: float) -> str:
    return "not a number (NaN)" if math.isnan(value) else "infinite"
