"""Group C, deep residual nets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.diagnosis.wording import in_words


class ResidualGrowth(Rule):
    """The residual branches are as large as what they are added to: the signal doubles its variance at every block.

    What it is: each block adds a branch that grows with its input, since nothing normalises it. The variance of the signal is
    multiplied at every block, the last blocks see a signal that is orders of magnitude larger than the first ones.

    Why it is bad: the logits are huge at the start, the gradient of the first blocks is multiplied, too, and only a tiny learning
    rate survives that.

    How to be sure: print the standard deviation of the hidden state behind each block, before the first step.

    How to mend it: multiply the branches by 1 / sqrt(number of blocks), begin their last layer at zero, or normalise in front of
    them (`x + branch(norm(x))`).

    When to ignore it: linear growth, as of branches behind a normalisation, comes to a factor near 1 and is not reported.

    Source: H. Zhang, Y. Dauphin, T. Ma, Fixup initialization, 2019; S. De, S. Smith, 2020.
    """

    code = "CL307"
    name = "residual-growth"
    severity = "warning"
    needs = ("residual_growth",)
    healthy = "The blocks of the untrained net do not multiply the variance of the signal."

    #: Median of the second half of the blocks; linear growth comes to 1.4 in four of them, to 1.2 in eight.
    growth = 1.6
    #: Of all blocks together.
    in_all = 30.0

    def check(self, history: History) -> Alert | None:
        growths = history.values("residual_growth")
        if len(growths) != 1 or history.steps("residual_growth")[0] != history.step or not growths[0] > self.growth:
            return None
        blocks = {name: value for name, value in history.layers("residual_growth").items() if 0 < value < math.inf}
        whole = math.prod(blocks.values()) if blocks else 0.0
        if not whole > self.in_all:
            return None
        names, count = list(blocks), len(blocks)
        return self.alert(
            history,
            where=(names[-1], names[0]),
            cause=(
                f"Each of the last residual blocks multiplies the variance of the signal by about {in_words(growths[0])}: by "
                f"{in_words(whole)} in all {count} from {names[0]} to {names[-1]}."
            ),
            advice=(
                f"Multiply each branch by {count**-0.5:.2g} (1 / sqrt({count})), begin its last layer at zero with "
                "nn.init.zeros_, "
                "or normalise in front of it: x + branch(norm(x))."
            ),
            evidence={"growth a block": growths[0], "threshold": self.growth, "growth in all": whole, "blocks": float(count)},
            confidence=0.85,
        )


RULES: Sequence[Rule] = (ResidualGrowth(),)
