"""A run folder as the cockpit writes it, and rules to judge it by."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit_lite.alert import Alert
from cockpit_lite.diagnosis.rule import Rule
from cockpit_lite.run import Run
from cockpit_lite.run_log import RunWriter


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


def alert(code: str = "CL901", name: str = "loss-rises", severity: str = "error", step: int = 12, **more) -> Alert:
    texts = {"cause": "The loss rose from 2.3 to 9.1.", "advice": "Divide ``lr`` by 10."}
    return Alert(code, name, severity, step, **{**texts, **more})


@pytest.fixture
def rules() -> tuple[Rule, ...]:
    return RULES


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """Write a run of ``steps`` steps with ``alerts``; ``final`` goes into run.json at the end, None leaves the run unfinished."""

    def make(
        steps: int = 40,
        alerts: tuple[Alert, ...] = (),
        final: dict | None = FINISHED,
        folder: str = "a-run",
        layers: tuple[str, ...] = ("0.weight", "0.bias"),
        info: dict | None = None,
        not_measured: dict | None = None,
    ) -> Run:
        described = {"model": "Net", "optimizer": "SGD", "versions": {"torch": "2.15.0"}, "seed": 0, **(info or {})}
        writer = RunWriter(tmp_path / folder, described)
        for step in range(steps):
            values = {"loss": 2.3 / (step + 1), "grad_norm": 0.5 + 0.01 * step}
            values["hessian_trace"] = math.nan if step == 30 else 3.0 + step
            values |= {f"grad_norm/{layer}": 0.1 * (index + 1) for index, layer in enumerate(layers)}
            writer.step(step, values, {"hessian_trace": {"kind": "estimated", "standard_error": 0.25}})
        if not_measured:
            writer.not_measured(0, not_measured)
        for one in alerts:
            writer.alert(one.to_dict())
        if final is None:
            writer.flush()
        else:
            writer.close(**final)
        return Run(writer.folder)

    return make
