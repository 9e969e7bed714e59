"""Preflight: is everything ready to train? Tried on one batch and on a copy of model and optimizer, before the first step.

The copy is trained for three steps under a cockpit of its own, so all rules that can say something by then are asked; then the
copy is tried out in ways that a training step does not allow. Nothing of the user's is changed, random numbers included.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cockpit_lite.alert import Alert
from cockpit_lite.cockpit import Cockpit
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.errors import SetupError
from cockpit_lite.preflight.checks import Objective, batch_size, check_backward, check_fit, check_leaks
from cockpit_lite.preflight.result import Check, Preflight
from cockpit_lite.probes.per_sample.generic import random_numbers_kept
from cockpit_lite.run import load_run
from cockpit_lite.schedule import Every

__all__ = ["Check", "Preflight", "preflight"]

_STEPS = 3
#: What three steps on the same batch are bound to show, or cannot.
_NOT_ASKED = frozenset({"constant-batch", "gradients-not-zeroed", "optimizer-not-stepping"})


def preflight(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    batch: Any,
    loss_fn: Callable[..., Tensor] | None = None,
    loss: Objective | None = None,
) -> Preflight:
    """Check model, optimizers and loss on one batch.

    Args:
        model: The model, as it is to be trained.
        optimizers: That train it.
        batch: One batch; without ``loss`` a pair of inputs and targets.
        loss_fn: Called with the model's output and the targets.
        loss: Instead of it, called with the model and the batch.

    Raises:
        SetupError: if there is no way to the loss, or model and batch do not fit.
    """
    if loss is None:
        loss = _usual_loss(batch, loss_fn)
    device = next(model.parameters()).device
    drawn: list[bool] = []
    with random_numbers_kept(device, drawn), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, optimizers = copy.deepcopy((model, list(optimizers)))
        model.zero_grad(set_to_none=True)
        pristine = copy.deepcopy(model)
        try:
            loss(copy.deepcopy(model), batch)
        except Exception as error:
            raise SetupError(
                f"preflight: the model cannot be called with this batch ({type(error).__name__}: {error})."
            ) from error
        checks = _rules(model, optimizers, batch, loss)
        inputs = _inputs(batch)
        attempts: list[tuple[str, Callable[[], Check]]] = [
            ("samples stay apart", lambda: check_leaks(pristine, inputs, batch_size(batch) or 0)),
            (
                "backward agrees with differences",
                lambda: check_backward(pristine, batch, loss, torch.Generator().manual_seed(0)),
            ),
            ("can fit one small batch", lambda: check_fit(pristine, batch, loss)),
        ]
        for name, attempt in attempts:
            torch.manual_seed(0)
            try:
                checks.append(attempt())
            except Exception as error:  # whatever a user's forward may raise on a part of a batch, or in float64
                checks.append(Check(name, "not checked", f"the model could not be tried ({type(error).__name__}: {error})"))
    return Preflight(tuple(checks))


def _usual_loss(batch: Any, loss_fn: Callable[..., Tensor] | None) -> Objective:
    if loss_fn is None:
        raise SetupError(
            "preflight needs the loss: give Cockpit a loss_fn, or call preflight(batch, loss=lambda model, batch: ...)."
        )
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise SetupError(
            "preflight(batch) takes a pair of inputs and targets; for anything else give loss=lambda model, batch: ..."
        )

    def usual(model: nn.Module, batch: Any) -> Tensor:
        return loss_fn(model(*_inputs(batch)), batch[1])

    return usual


def _inputs(batch: Any) -> list[Any]:
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    return list(inputs) if isinstance(inputs, (tuple, list)) else [inputs]


def _rules(model: nn.Module, optimizers: Sequence[Optimizer], batch: Any, loss: Objective) -> list[Check]:
    """Train the copy for a few steps, and return what the rules say."""
    model.train()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        cockpit = QuietCockpit(model, optimizers, run=run, instruments="standard", schedule=Every(1), budget=None)
        with cockpit:
            for _ in range(_STEPS):
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss(model, batch).backward()
                for optimizer in optimizers:
                    optimizer.step()
        measured = set(load_run(run).names)
    alerts = [alert for alert in rank(cockpit.alerts, RULES) if alert.name not in _NOT_ASKED]
    found = {alert.name for alert in alerts}
    failed = [Check(alert.name, "failed", f"{alert.cause} {alert.advice}") for alert in alerts]
    passed = [
        Check(rule.name, "passed", rule.healthy)
        for rule in RULES
        if rule.name in _AT_THE_START - found and set(rule.needs) <= measured
    ]
    return failed + passed


class QuietCockpit(Cockpit):
    """Leaves neither a report nor a line in the terminal."""

    @staticmethod
    def _announce(alert: Alert) -> None:
        pass

    def _write_results(self) -> None:
        pass


#: Rules that can say something after three steps.
_AT_THE_START = frozenset(
    {
        "parameter-not-optimized", "frozen-parameter", "graph-cut", "tied-weights-apart", "batch-norm-too-few-values",
        "softmax-twice", "nll-without-log-probabilities", "bounded-regression-output", "loss-summed", "loss-at-start",
        "padding-in-loss", "non-finite", "vanishing-gradients", "exploding-gradients", "init-scale", "symmetric-init",
        "saturated-units", "inputs-not-normalised",
    }
)  # fmt: skip
