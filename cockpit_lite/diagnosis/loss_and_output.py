"""Group B, loss and output."""

from __future__ import annotations

import math

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.wording import in_words


class NonFinite(Rule):
    """The loss or the gradient is not a number, or infinite.

    What it is: somewhere a computation left the range of floating point numbers: the logarithm of zero, zero divided by
    zero, an overflow. From there on every weight that the gradient reaches becomes NaN at the next step.

    Why it is bad: NaN never goes away by itself. All steps after it are wasted.

    How to be sure: look at the loss and the gradient norm of the steps before. If they grew for some steps, the NaN is a
    consequence (exploding gradients, or a learning rate that is too high); if they were ordinary, one operation or one sample is
    to blame. The step is kept in the run folder, and `cockpit-lite replay RUN --model module:function` runs it again and names
    the module and the operation; the function makes the model.

    How to mend it: work with logits and fused losses (`cross_entropy`, `binary_cross_entropy_with_logits`) instead of logarithms
    of probabilities, add an epsilon inside square roots and denominators, check the inputs with `torch.isfinite`.

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
            (history.steps(name)[place], name, place)
            for name in ("loss", "grad_norm")
            if (place := history.first(name, _is_not_finite)) is not None
        ]
        if not found:
            return None
        step, name, place = min(found, key=lambda item: item[0])
        value, before = history.values(name)[place], history.values(name)[max(place - 1, 0) : place]
        what = "loss" if name == "loss" else "gradient norm"
        before_text = f"; the last measured value before was {in_words(before[0])}" if before else ""
        layers = history.layers("grad_norm")
        where = tuple(layer for layer, norm in layers.items() if not math.isfinite(norm))
        return self.alert(
            history,
            step=step,
            where=where[-1:] if len(where) < len(layers) else (),
            cause=f"The {what} is {in_words(value)} at step {step}{before_text}.",
            advice=(
                "Stop: the weights are lost from the next step on. If loss or gradient grew before, lower the learning rate or "
                f"clip the gradient; if not, {_what_names_it(history)}, which names the operation."
            ),
            evidence={name: value, "step": step, **({f"{name} before": before[0]} if before else {})},
        )


def _what_names_it(history: History) -> str:
    if history.last("step_kept"):
        return f"run step {history.steps('step_kept')[0]}, which was kept, again: cockpit-lite replay RUN --model module:function"
    return "run the step again under torch.autograd.set_detect_anomaly(True)"


def _is_not_finite(value: float) -> bool:
    return not math.isfinite(value)
