"""Group C, recurrent layers."""

from __future__ import annotations

import math

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.signal_propagation import ExplodingGradients
from cockpit_lite.diagnosis.wording import in_words


class ExplodingRecurrence(Rule):
    """The gradient explodes on its way back through time.

    What it is: a recurrent layer multiplies the gradient with its recurrent weights once for every time step. Where the largest
    singular value is above one, and no gate holds it back, it grows geometrically with the length of the sequence.

    Why it is bad: one step throws the recurrent weights about, and the loss with them.

    How to be sure: the gradient explodes, and the largest part of it is that of a recurrent weight.

    How to mend it: clip the gradient, start from orthogonal recurrent weights, use an LSTM or a GRU, or shorter sequences
    (truncated backpropagation through time).

    When to ignore it: a single spike that comes back; that is not reported.

    Source: R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013.
    """

    code = "CL309"
    name = "exploding-recurrence"
    severity = "error"
    needs = ("grad_norm", "loss")
    healthy = "No recurrent layer lets its gradient explode."

    _exploding = ExplodingGradients()

    def does_not_apply(self, history: History) -> str:
        return "" if any(map(_is_recurrent, history.shapes)) else "the model has no recurrent layer of torch"

    def check(self, history: History) -> Alert | None:
        norms = {name: norm for name, norm in history.layers("grad_norm").items() if math.isfinite(norm)}
        largest = max(norms, key=lambda name: norms[name], default="")
        if not _is_recurrent(largest):
            return None
        found = self._exploding.check(history)
        if found is None:
            return None
        return self.alert(
            history,
            where=(largest,),
            cause=(
                f"The gradient explodes, and most of it is that of {largest}, {in_words(norms[largest])} of "
                f"{in_words(math.hypot(*norms.values()))}: it grows on its way back through time."
            ),
            advice=(
                "Clip between backward and step, torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0), and start from "
                f"nn.init.orthogonal_({largest})."
            ),
            evidence=found.evidence,
            confidence=found.confidence,
        )


def _is_recurrent(name: str) -> bool:
    return "weight_hh" in name
