"""Rules and alerts to report on, apart from the real ones: their codes start with CL9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.run import Run


class LossRises(Rule):
    """The loss rises instead of falling.

    How to be sure: the same with a tenth of ``lr`` falls::

        optimizer = SGD(model.parameters(), lr=0.01)

    When to ignore it:

    - in a warm-up
    - in a game of
      two players
    """

    code, name, severity = "CL901", "loss-rises", "error"
    needs = ("loss", "grad_norm")
    healthy = "The loss never rose for long."


class NoiseDominates(Rule):
    """The gradient is noise."""

    code, name, severity = "CL902", "noise-dominates", "warning"
    needs = ("gradient_noise_scale",)
    healthy = "The batch is large enough."


class TooFlat(Rule):
    """The loss is flat."""

    code, name, severity = "CL903", "too-flat", "note"
    needs = ("loss", "hessian_trace", "max_eigenvalue")
    healthy = "There is curvature."


FINISHED = {"status": "finished"}
RULES = (LossRises(), NoiseDominates(), TooFlat())


def alert(code: str = "CL901", name: str = "loss-rises", severity: str = "error", step: int = 12, **more: Any) -> Alert:
    texts = {"cause": "The loss rose from 2.3 to 9.1.", "advice": "Divide ``lr`` by 10."}
    return Alert(code, name, severity, step, **{**texts, **more})


def record(run: Run, name: str, values: Sequence[Any], steps: Sequence[int] | None = None) -> None:
    """Add a reading to a run as if its log held it, beside or instead of what it holds."""
    run._columns.add({"steps": list(range(len(values)) if steps is None else steps), "values": {name: list(values)}})
