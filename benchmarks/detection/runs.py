"""One training under the cockpit, healthy or broken, and what was found in it."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.detection.baselines import BASELINES
from benchmarks.detection.faults import CONTROLS, FAULTS, HELD_OUT, Setup
from benchmarks.detection.tasks import TASKS, Task
from cockpit_lite import Alert, Cockpit, load_run
from cockpit_lite.diagnosis import RULES
from cockpit_lite.diagnosis.ranking import rank
from cockpit_lite.preflight import QuietCockpit

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw")
#: Steps of a healthy training.
HEALTHY_STEPS = 160
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
        seeds: How many of each; the test part has seeds of its own.
    """
    found: list[Case] = []
    for task in TASKS:
        first = 100 if task.held_out else 0
        for number, fault in enumerate(FAULTS):
            for seed in range(first, first + seeds):
                kinds = [kind for kind in OPTIMIZERS if fault.where(_setup(task.name, kind))]
                for place in range(min(2, len(kinds))):
                    kind = kinds[(seed + number + 2 * place) % len(kinds)]
                    found.append(Case(task.name, kind, seed, number, (seed + place) % len(fault.severities)))
        for place, control in enumerate(CONTROLS):
            for seed in range(first, first + seeds):
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
    torch.manual_seed(case.seed)
    setup = Setup.of(task_named(case.task), case.optimizer)
    begin, steps = 0, HEALTHY_STEPS
    if case.fault >= 0:
        fault = FAULTS[case.fault]
        fault.apply(setup, fault.severities[case.severity])
        begin, steps = fault.step, fault.step + fault.steps
    else:
        CONTROLS[case.control](setup)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cockpit = QuietCockpit(_model(setup), setup.optimizer(), run=Path(folder) / "run", schedule=_often, budget=None)
        metric = _train(setup, cockpit, steps)
        run = load_run(cockpit.folder)
        if keep is not None:
            shutil.copytree(cockpit.folder, keep / case.key.replace("/", "."), dirs_exist_ok=True)
        baselines = {name: baseline(run) for name, baseline in BASELINES.items()}
    return {
        "key": case.key,
        "case": vars(case),
        "begin": begin,
        "steps": steps,
        "metric": metric,
        "findings": described(rank(cockpit.alerts, RULES)),
        "baselines": baselines,
    }


def described(alerts: Iterable[Alert]) -> list[tuple[str, int, str, tuple[str, ...]]]:
    """Return name, step, severity and places of findings."""
    return [(alert.name, alert.step, alert.severity, alert.where[:3]) for alert in alerts]


def _often(step: int) -> bool:
    return step < 20 or step % 2 == 0


def _model(setup: Setup) -> nn.Module:
    setup.model.train(setup.training)
    return setup.model


def _train(setup: Setup, cockpit: Cockpit, steps: int) -> float:
    """Train and return the mean loss of the last steps."""
    losses: list[float] = []
    held_out = torch.arange(len(setup.inputs) - HELD_OUT, len(setup.inputs))
    (optimizer,) = cockpit._optimizers
    scheduler = None if setup.scheduler is None else setup.scheduler(optimizer)
    with cockpit:
        for step in range(steps):
            for change in setup.every_step:
                change(setup, optimizer, step)
            inputs, targets = setup.batch(step)
            if setup.zero:
                optimizer.zero_grad()
            loss = setup.loss(setup.model(inputs), targets)
            loss.backward()
            if setup.clip is not None:
                nn.utils.clip_grad_norm_(setup.model.parameters(), setup.clip)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss.item())
            if setup.validates and step % VALIDATE_EVERY == VALIDATE_EVERY - 1:
                setup.model.train(setup.validates == "train")
                with torch.no_grad():
                    value = setup.loss(setup.model(setup.inputs[held_out]), setup.targets[held_out])
                setup.model.train()
                cockpit.log(validation_loss=value)
    return sum(losses[-10:]) / len(losses[-10:])


def attempt(keep: Path, case: Case) -> dict[str, Any]:
    """Execute a case; what fails is a record, too."""
    try:
        return execute(case, keep)
    except Exception as error:  # one training that cannot be made must not end the benchmark
        return {"key": case.key, "error": f"{type(error).__name__}: {error}"}
