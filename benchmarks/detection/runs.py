"""One training under the cockpit, healthy or broken, and what was found in it."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks.detection.baselines import BASELINES
from benchmarks.detection.faults import CONTROLS, FAULTS, HELD_OUT, Setup
from benchmarks.detection.replay import diagnose
from benchmarks.detection.tasks import TASKS, Task
from cockpit_lite import Alert, Cockpit, load_run
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.preflight import QuietCockpit
from cockpit_lite.presets import resolve

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
#: Steps of a healthy training; of those that others are compared with and of the later seeds, and of the rest.
LONG, SHORT = 260, 100
LATER = 102
#: Healthy trainings that the harm of a fault is measured by.
MEASURES = ("plain", "validation", "clipping")
#: Of each control; on the test part as many as 300 healthy runs need, elsewhere fewer where a step takes long.
HEALTHY_SEEDS = {"autoencoder": 5, "residual": 5, "transformer": 5, "mlp": 5, "lstm": 3, "conv_batch_norm": 2}
#: Of the preset "standard", those that no rule reads: left out, and a run takes half as long. The curvature along the gradient
#: is looked at where the optimizer steps along the gradient.
READ_BY_NO_RULE = frozenset(
    {
        "activation_mean", "alpha", "cabs", "conflicting_samples", "distance", "early_stopping", "grad_hist_1d", "gradient_scale",
        "gsnr", "hardest_samples", "inner_product_test", "norm_test", "orthogonality_test", "overhead",
    }
)  # fmt: skip
VALIDATE_EVERY = 10


@dataclass(frozen=True)
class Case:
    """What is to be run.

    Attributes:
        task: Name of the task.
        optimizer: Its kind.
        seed: Of weights and batches.
        fault: Place in FAULTS, or -1 for a healthy training.
        severity: Place in the fault's severities.
        control: Of a healthy training: its name.
    """

    task: str
    optimizer: str
    seed: int
    fault: int = -1
    severity: int = 0
    control: str = ""

    @property
    def key(self) -> str:
        """One string a case."""
        what = self.control or f"{self.fault}.{FAULTS[self.fault].name}.{self.severity}"
        return f"{self.task}/{self.optimizer}/{self.seed}/{what}"

    @property
    def held_out(self) -> bool:
        """Whether the case belongs to the test part: another architecture, or other seeds and optimizers."""
        return task_named(self.task).held_out or self.seed >= 100


def task_named(name: str) -> Task:
    """Return the task of this name."""
    return next(task for task in TASKS if task.name == name)


def cases(seeds: int) -> list[Case]:
    """Return all cases that can occur: each fault and control on each task, optimizers and severities by turns.

    Args:
        seeds: How many of each fault; the test part has seeds of its own. Of the healthy ones there are HEALTHY_SEEDS.
    """
    found: list[Case] = []
    for task in TASKS:
        first = 100 if task.held_out else 0
        for number, fault in enumerate(FAULTS):
            kinds = [kind for kind in OPTIMIZERS if fault.where(_setup(task.name, kind))]
            for seed in range(first, first + seeds if kinds else first):
                turn = seed - first + number
                found.append(Case(task.name, kinds[turn % len(kinds)], seed, number, turn % len(fault.severities)))
        for place, control in enumerate(CONTROLS):
            for seed in range(first, first + HEALTHY_SEEDS.get(task.name, 1)):
                found.append(Case(task.name, OPTIMIZERS[(seed + place) % 4], seed, control=control))
    return found


def _setup(task: str, optimizer: str) -> Setup:
    with torch.random.fork_rng():
        return Setup.of(task_named(task), optimizer)


def execute(case: Case, keep: Path | None = None) -> dict[str, Any]:
    """Train and return what was found, as plain data.

    Args:
        case: What to train.
        keep: Folder for the logs of all runs, so that the rules can be asked again.
    """
    torch.set_num_threads(1)
    setup = begun(case)
    begin, steps = 0, LONG if case.control in MEASURES[:2] or case.seed >= LATER else SHORT
    if case.fault >= 0:
        fault = FAULTS[case.fault]
        begin, steps = fault.step, fault.step + fault.steps
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cockpit = _cockpit(setup, Path(folder) / "run")
        losses = train(setup, cockpit, steps)
        run = load_run(cockpit.folder)
        if keep is not None:
            shutil.copytree(cockpit.folder, keep / case.key.replace("/", "."), dirs_exist_ok=True)
        baselines = {name: baseline(run) for name, baseline in BASELINES.items()}
    return {
        "key": case.key,
        "case": vars(case),
        "begin": begin,
        "steps": steps,
        "losses": [float(f"{loss:.4g}") for loss in losses],
        "places": setup.places,
        "findings": described(rank(cockpit.alerts, RULES)),
        "baselines": baselines,
    }


def begun(case: Case) -> Setup:
    """Return what a case is made of, ready to train; seeds torch's generator."""
    torch.manual_seed(case.seed)
    setup = Setup.of(task_named(case.task), case.optimizer)
    if case.fault >= 0:
        fault = FAULTS[case.fault]
        fault.apply(setup, fault.severities[case.severity])
    else:
        CONTROLS[case.control](setup)
    return setup


def asked(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Ask today's rules about the log of a run in a folder of runs; return what changes of its record: nothing without a log."""
    torch.set_num_threads(1)
    log = folder / record["key"].replace("/", ".")
    if not log.exists():
        return {}
    return {"findings": described(diagnose(log)), "places": begun(Case(**record["case"])).places}


def described(alerts: Iterable[Alert]) -> list[tuple[str, int, str, tuple[str, ...]]]:
    """Return name, step, severity and places of findings."""
    return [(alert.name, alert.step, alert.severity, alert.where[:3]) for alert in alerts]


def _cockpit(setup: Setup, folder: Path) -> Cockpit:
    left_out = READ_BY_NO_RULE if setup.kind in ("sgd", "momentum") else READ_BY_NO_RULE | {"curvature_along_gradient"}
    instruments = [instrument for instrument in resolve("standard") if instrument.name not in left_out]
    return QuietCockpit(
        _model(setup),
        setup.optimizer(),
        run=folder,
        instruments=instruments,
        schedule=_often,
        budget=None,
        black_box=False,  # what it keeps is for a replay; the rules do not need it
    )


def _often(step: int) -> bool:
    return step < 20 or step % (2 if step < 80 else 4) == 0


def _model(setup: Setup) -> nn.Module:
    setup.model.train(setup.training)
    return setup.model


def train(setup: Setup, cockpit: Cockpit | None, steps: int, optimizer: Optimizer | None = None) -> list[float]:
    """Train and return the losses.

    Args:
        setup: What to train.
        cockpit: That watches, or None.
        steps: How many.
        optimizer: Where there is no cockpit.
    """
    losses: list[float] = []
    held_out = torch.arange(len(setup.inputs) - HELD_OUT, len(setup.inputs))
    if cockpit is not None:
        (optimizer,) = cockpit._optimizers
    assert optimizer is not None
    scheduler = None if setup.scheduler is None else setup.scheduler(optimizer)
    with cockpit or nullcontext():
        for step in range(steps):
            for change in setup.every_step:
                change(setup, optimizer, step)
            inputs, targets = setup.batch(step)
            if setup.zero:
                optimizer.zero_grad()
            parts = list(zip(inputs.chunk(setup.micro_batches), targets.chunk(setup.micro_batches), strict=True))
            whole = 0.0
            for some, wanted in parts:
                loss = setup.loss(setup.model(some), wanted) / len(parts)
                (loss if setup.scaler is None else setup.scaler.scale(loss)).backward()
                whole += loss.item()
            if setup.scaler is not None and setup.unscales:
                setup.scaler.unscale_(optimizer)
            if setup.clip is not None:
                nn.utils.clip_grad_norm_(setup.model.parameters(), setup.clip)
            if setup.scaler is not None:
                setup.scaler.step(optimizer)
                setup.scaler.update()
            elif setup.steps:
                optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(whole)
            if setup.validates and step % VALIDATE_EVERY == VALIDATE_EVERY - 1:
                setup.model.train(setup.validates == "train")
                with torch.no_grad():
                    value = setup.loss(setup.model(setup.inputs[held_out]), setup.targets[held_out])
                setup.model.train()
                if cockpit is not None:
                    cockpit.log(validation_loss=value)
    return losses


def attempt(keep: Path, case: Case) -> dict[str, Any]:
    """Execute a case; what fails is a record, too."""
    try:
        return execute(case, keep)
    except Exception as error:  # one training that cannot be made must not end the benchmark
        return {"key": case.key, "error": f"{type(error).__name__}: {error}"}
