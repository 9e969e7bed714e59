"""Applying the advice of an alert to the training that raised it, and training again.

What is changed is read from the alert: its name says what kind of change it advises, its evidence and its places say how much
and where. Nothing here knows which fault was injected. Advice that asks a person to look at something cannot be applied.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.detection.faults import FAULTS, HELD_OUT, Setup
from benchmarks.detection.replay import diagnose
from benchmarks.detection.runs import Case, begun, task_named, train
from cockpit_lite import Alert

#: Steps of the training that is run again, and of the healthy one beside it.
STEPS = 150
#: Share of the healthy improvement that must be reached.
REACHED = 0.9

Repair = Callable[[Setup, Alert], None]


def _hold(setup: Setup, name: str, value: float) -> None:
    """Set a value of the optimizer from the start, whatever else changes it."""

    def hold(setup: Setup, optimizer: Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group[name] = value

    setup.every_step.append(hold)


def _rate(setup: Setup, alert: Alert) -> None:
    _hold(setup, "lr", alert.evidence["suggested learning rate"])


def _mean(setup: Setup, alert: Alert) -> None:
    loss, rows = setup.loss, alert.evidence["rows"]
    setup.loss = lambda output, targets: loss(output, targets) / rows


def _decay(setup: Setup, alert: Alert) -> None:
    _hold(setup, "weight_decay", alert.evidence["suggested weight decay"])


def _clip(setup: Setup, alert: Alert) -> None:
    setup.clip = alert.evidence["suggested norm to clip at"]


def _zero(setup: Setup, alert: Alert) -> None:
    def zero(setup: Setup, optimizer: Optimizer, step: int) -> None:
        setup.zero = True

    setup.every_step.append(zero)


def _all_parameters(setup: Setup, alert: Alert) -> None:
    setup.parameters = None


def _unfreeze(setup: Setup, alert: Alert) -> None:
    for name in alert.where:
        setup.model.get_parameter(name).requires_grad_(True)


def _join(setup: Setup, alert: Alert) -> None:
    """Take out what stands between the modules that were named and is none of torch's."""
    assert isinstance(setup.model, nn.Sequential)
    first, last = (int(name.partition(".")[0]) for name in alert.where[:2])
    kept = [
        module
        for place, module in enumerate(setup.model)
        if not first < place < last or type(module).__module__.startswith("torch")
    ]
    setup.model = nn.Sequential(*kept)


def _tie(setup: Setup, alert: Alert) -> None:
    """Let the weight be the other one of its shape again."""
    owner, _, name = alert.where[0].rpartition(".")
    own = setup.model.get_parameter(alert.where[0])
    others = (parameter for parameter in setup.model.parameters() if parameter is not own and parameter.shape == own.shape)
    setattr(setup.model.get_submodule(owner), name, next(others))


def _train_mode(setup: Setup, alert: Alert) -> None:
    setup.training = True


def _eval_mode(setup: Setup, alert: Alert) -> None:
    setup.validates = "eval"


def _larger_batch(setup: Setup, alert: Alert) -> None:
    _batch(setup, len(setup.order(0)) * -(-16 // max(int(alert.evidence["values a channel"]), 1)))


def _suggested_batch(setup: Setup, alert: Alert) -> None:
    _batch(setup, int(alert.evidence["suggested batch size"]))


def _batch(setup: Setup, size: int) -> None:
    count = len(setup.inputs) - HELD_OUT
    setup.order = lambda step: torch.randint(count, (min(size, count),))


def _shuffle(setup: Setup, alert: Alert) -> None:
    _batch(setup, len(setup.order(0)))


def _logits(setup: Setup, alert: Alert) -> None:
    """Hand what the last linear layer puts out to the cross entropy."""
    setup.loss = setup.task.loss
    _without_last(setup, nn.Softmax)


def _linear_output(setup: Setup, alert: Alert) -> None:
    _without_last(setup, nn.ReLU, nn.Sigmoid, nn.Tanh)


def _without_last(setup: Setup, *kinds: type[nn.Module]) -> None:
    if isinstance(setup.model, nn.Sequential) and isinstance(setup.model[-1], kinds):
        setup.model = setup.model[:-1] if len(setup.model) > 2 else setup.model[0]


def _head_at_zero(setup: Setup, alert: Alert) -> None:
    nn.init.zeros_([module for module in setup.model.modules() if isinstance(module, nn.Linear)][-1].weight)


def _shift(setup: Setup, alert: Alert) -> None:
    setup.inputs, setup.targets = setup.inputs[:, :-1], setup.inputs[:, 1:]


def _ignore_padding(setup: Setup, alert: Alert) -> None:
    setup.loss = lambda output, targets: F.cross_entropy(output.flatten(0, 1), targets.flatten(), ignore_index=0)


def _initialise(setup: Setup, alert: Alert) -> None:
    for parameter in setup.model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")


def _initialise_and_clip(setup: Setup, alert: Alert) -> None:
    if "usual" in alert.evidence:
        setup.clip = 2 * alert.evidence["usual"]
        return
    _initialise(setup, alert)
    setup.clip = 1.0


def _orthogonal_and_clip(setup: Setup, alert: Alert) -> None:
    nn.init.orthogonal_(setup.model.get_parameter(alert.where[0]))
    setup.clip = 1.0


class _Block(nn.Module):
    """A layer as the advice has it: x + layer(norm(x))."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(layer.in_features), layer

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layer(self.norm(hidden)).relu()


def _rectify(setup: Setup, alert: Alert) -> None:
    """ReLU instead of sigmoid and tanh, weights to match, normalisation layers and residual connections."""
    assert isinstance(setup.model, nn.Sequential)
    _initialise(setup, alert)
    changed: list[nn.Module] = []
    for module in setup.model:
        if isinstance(module, (nn.ReLU, nn.Sigmoid, nn.Tanh)):
            if not isinstance(changed[-1], _Block):
                changed.append(nn.ReLU())
        else:
            square = isinstance(module, nn.Linear) and module.in_features == module.out_features
            changed.append(_Block(module) if square else module)
    setup.model = nn.Sequential(*changed)


def _at_random(setup: Setup, alert: Alert) -> None:
    for name, parameter in setup.model.named_parameters():
        if parameter.dim() > 1 and (name in alert.where or bool((parameter == parameter.flatten()[0]).all())):
            nn.init.kaiming_normal_(parameter)


def _revive(setup: Setup, alert: Alert) -> None:
    """Initialise the layers in front of the dead units anew, or let units pass on a little where they died in training."""
    modules = dict(setup.model.named_modules())
    names = list(modules)
    for name in alert.where:
        if alert.evidence["share at first"] <= alert.evidence["threshold"]:
            setup.model.set_submodule(name, nn.LeakyReLU())
            continue
        before = [modules[other] for other in names[: names.index(name)] if isinstance(modules[other], (nn.Linear, nn.Conv2d))]
        if before and isinstance(before[-1], (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(before[-1].weight)
            if before[-1].bias is not None:
                nn.init.zeros_(before[-1].bias)


def _glorot(setup: Setup, alert: Alert) -> None:
    for module in setup.model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)


def _standardise(setup: Setup, alert: Alert) -> None:
    axes = tuple(axis for axis in range(setup.inputs.dim()) if axis != (1 if setup.inputs.dim() > 3 else setup.inputs.dim() - 1))
    mean, deviation = setup.inputs.mean(axes, keepdim=True), setup.inputs.std(axes, keepdim=True)
    setup.inputs = (setup.inputs - mean) / torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def _once_an_epoch(setup: Setup, alert: Alert) -> None:
    if "suggested learning rate" in alert.evidence:
        return _rate(setup, alert)
    _hold(setup, "lr", setup.rate)  # less than one epoch is trained here
    return None


def _quiet_branches(setup: Setup, alert: Alert) -> None:
    for name, module in setup.model.named_children():
        last = [inner for inner in module.modules() if isinstance(inner, nn.Linear)][-1:]
        if name in alert.where or (last and last[0] is not module):
            nn.init.zeros_(last[0].weight)


#: What an alert's advice comes to, by its name. Those that are missing ask a person to look.
REPAIRS: dict[str, Repair] = {
    "gradients-not-zeroed": _zero,
    "parameter-not-optimized": _all_parameters,
    "frozen-parameter": _unfreeze,
    "graph-cut": _join,
    "tied-weights-apart": _tie,
    "training-in-eval-mode": _train_mode,
    "validating-in-train-mode": _eval_mode,
    "batch-norm-too-few-values": _larger_batch,
    "softmax-twice": _logits,
    "nll-without-log-probabilities": _logits,
    "bounded-regression-output": _linear_output,
    "loss-summed": _mean,
    "loss-at-start": _head_at_zero,
    "target-not-shifted": _shift,
    "padding-in-loss": _ignore_padding,
    "vanishing-gradients": _rectify,
    "exploding-gradients": _initialise_and_clip,
    "exploding-recurrence": _orthogonal_and_clip,
    "init-scale": _initialise,
    "symmetric-init": _at_random,
    "dead-units": _revive,
    "saturated-units": _glorot,
    "residual-growth": _quiet_branches,
    "learning-rate-too-high": _rate,
    "learning-rate-too-low": _rate,
    "weight-decay-too-strong": _decay,
    "clipping-too-tight": _clip,
    "learning-rate-schedule": _once_an_epoch,
    "inputs-not-normalised": _standardise,
    "constant-batch": _shuffle,
    "data-sorted": _shuffle,
    "batch-too-small": _suggested_batch,
}


def advised(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """Read the first finding of a run in a folder of runs again, and train as it says; None: it says nothing that can be done."""
    torch.set_num_threads(1)
    alerts = diagnose(folder / record["key"].replace("/", "."))
    if not alerts or alerts[0].name not in REPAIRS:
        return None
    try:
        return applied(Case(**record["case"]), alerts[0])
    except KeyError:  # no number in its evidence: it asks a person to look
        return None


def applied(case: Case, alert: Alert) -> dict[str, Any]:
    """Train a broken case again with the advice of an alert; return what it comes to beside the healthy training."""
    begin, wanted = _healthy(case.task, case.optimizer, case.seed, FAULTS[case.fault].tuned)
    setup = begun(case)
    REPAIRS[alert.name](setup, alert)
    train(setup, None, STEPS, _optimizer(setup))
    end = _clean_loss(setup)
    share = (begin - end) / (begin - wanted)
    return {"key": case.key, "advice": alert.name, "begin": begin, "healthy": wanted, "repaired": end, "share": share}


@cache
def _healthy(task: str, optimizer: str, seed: int, tuned: float) -> tuple[float, float]:
    """Return the loss on clean data before and after a healthy training."""
    torch.manual_seed(seed)
    setup = Setup.of(task_named(task), optimizer)
    setup.rate *= tuned
    begin = _clean_loss(setup)
    train(setup, None, STEPS, _optimizer(setup))
    return begin, _clean_loss(setup)


def _optimizer(setup: Setup) -> Optimizer:
    setup.model.train(setup.training)
    return setup.optimizer()


def _clean_loss(setup: Setup) -> float:
    """Return the loss on some of the healthy data, in eval mode; inputs are scaled as the setup has them."""
    setup.model.eval()
    inputs, targets = setup.task.data()
    if setup.inputs.is_floating_point():
        inputs = setup.inputs
    with torch.no_grad():
        return setup.task.loss(setup.model(inputs[:512]), targets[:512]).item()
