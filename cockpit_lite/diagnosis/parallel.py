"""Group F, several processes."""

from __future__ import annotations

from collections.abc import Sequence

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.rule import Rule


class RanksDisagree(Rule):
    """The processes of a distributed training have different weights.

    What it is: in data-parallel training all ranks start from the same weights and take the same steps. Here they do not: the
    model was used around its wrapper, a parameter was made after wrapping, one rank skipped a step, or each trains for itself.

    Why it is bad: the averaged gradient belongs to no model, and what is saved is that of one rank.

    How to be sure: print a sum of the weights on every rank.

    How to mend it: call the wrapped model, `DistributedDataParallel(model)`, not the one inside; wrap after all parameters are
    there; the same clipping and skipping on all ranks.

    When to ignore it: where each rank trains a model of its own on purpose. Sharded parameters are not compared.

    Source: S. Li and others, PyTorch distributed: experiences on accelerating data parallel training, 2020.
    """

    code = "CL604"
    name = "ranks-disagree"
    severity = "error"
    needs = ("ranks_apart",)
    healthy = "All ranks have the same weights."

    def check(self, history: History) -> Alert | None:
        counts = history.values("ranks_apart")
        if not counts or not counts[-1] > 0:
            return None
        step = history.steps("ranks_apart")[-1]
        return self.alert(
            history,
            step=step,
            cause=(
                f"{counts[-1]:.0f} other rank{'s have' if counts[-1] > 1 else ' has'} weights that differ from those here, seen "
                "at "
                f"step {step}."
            ),
            advice=(
                "Call the wrapped model, ddp = DistributedDataParallel(model), in the loop, and check that all ranks skip the "
                "same "
                "steps."
            ),
            evidence={"ranks that differ": counts[-1], "threshold": 0.0},
            confidence=0.9,
        )


RULES: Sequence[Rule] = (RanksDisagree(),)
