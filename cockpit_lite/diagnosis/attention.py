"""Group F, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.series import finite, median
from cockpit_lite.diagnosis.wording import in_words


class AttentionCollapse(Rule):
    """The attention logits have grown until each query attends to a single key.

    What it is: nothing bounds the product of queries and keys. Once they grow, the softmax puts all weight on one key, its
    entropy goes to zero, and its gradient with it.

    Why it is bad: the layer passes on one token and cannot learn to do otherwise; in half precision the logits overflow next.

    How to be sure: the largest product of a query and a key rises over the run while the loss stands still or jumps.

    How to mend it: normalise queries and keys (`nn.RMSNorm` on both, QK-norm), a lower learning rate, a longer warm-up.

    When to ignore it: heads that are sharp by what they have learnt are fine: there the loss falls, and that is not reported.

    Source: S. Zhai and others, Stabilizing transformer training by preventing attention entropy collapse, 2023; M. Dehghani and
    others, Scaling vision transformers to 22 billion parameters, 2023.
    """

    code = "CL603"
    name = "attention-collapse"
    severity = "warning"
    needs = ("attention_entropy", "loss")
    follows_from = ("learning-rate-too-high", "exploding-gradients")
    healthy = "The attention keeps its choice, or the loss falls."
    passes = True

    first_step = 50
    measured = 8
    entropy = 0.1
    #: Where the heads began to attend to more than that, and still do.
    began = 0.3
    logit, growth = 30.0, 4.0
    #: A loss that has come down to this share in the second half of the run falls.
    falls = 0.95

    def check(self, history: History) -> Alert | None:
        entropies = finite(history.sample("attention_entropy"))
        if history.step < self.first_step or len(entropies) < self.measured:
            return None
        begin, now = median(entropies[:3]), median(entropies[-4:])
        logits = finite(history.sample("attention_logit"))
        logit_begin, logit = median(logits[:3]), median(logits[-4:])
        grown = logit > max(self.logit, self.growth * logit_begin) or logit_begin > 3 * self.logit
        if not now < self.entropy or not (grown or (not logits and begin > self.began)):
            return None
        losses = finite(history.sample("loss", begin=history.step // 2))
        if len(losses) < 8 or median(losses[-4:]) < self.falls * median(losses[:4]):
            return None
        where = tuple(name for name, value in history.layers("attention_entropy").items() if value < self.entropy)
        of_logits = (
            ""
            if math.isnan(logit)
            else f", and the largest attention logit went from {in_words(logit_begin)} to {in_words(logit)}"
        )
        return self.alert(
            history,
            where=where,
            cause=(
                f"The entropy of the attention weights fell from {begin:.0%} to {now:.1%} of that of equal weights{of_logits}, "
                "while the loss does not fall."
            ),
            advice=(
                "Normalise queries and keys before their product (QK-norm: nn.RMSNorm on both), and divide the learning rate by "
                "3."
            ),
            evidence={
                "entropy": now,
                "threshold": self.entropy,
                "entropy at first": begin,
                **({} if math.isnan(logit) else {"largest logit": logit, "largest logit at first": logit_begin}),
            },
            confidence=0.8 if logits else 0.6,
        )


RULES: Sequence[Rule] = (AttentionCollapse(),)
