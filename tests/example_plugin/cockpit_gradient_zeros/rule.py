"""A gradient without a single element that is not zero."""

from __future__ import annotations

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule


class ZeroGradient(Rule):
    """The loss does not depend on the weights: every element of the gradient is exactly zero.

    How to be sure: print ``loss.grad_fn``.

    When to ignore it: never for more than a few steps.
    """

    code = "ZG001"
    name = "zero-gradient"
    severity = "error"
    needs = ("gradient_zeros",)
    healthy = "Gradient reaches the parameters."

    def check(self, history: History) -> Alert | None:
        shares = history.values("gradient_zeros")[-3:]
        if len(shares) < 3 or min(shares) < 1.0:
            return None
        return self.alert(
            history,
            cause="The gradient was exactly zero at the last three measured steps.",
            advice="Look for a detach() between model and loss.",
            evidence={"gradient_zeros": shares[-1]},
        )
