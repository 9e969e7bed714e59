"""Training with and without the cockpit, bit by bit: every optimizer for long, and every way of training with every optimizer.

A net with dropout and batch norm is trained for 50 steps on scikit-learn's digits, twice from the same seeds: plain, and with
every instrument measuring at every step. Compared are the bits of the weights, and apart from them of everything else that the
training leaves behind: losses, gradients, buffers, optimizer state, the states of the random number generators, hooks.

The last row is the control: the comparison must see it when one weight is moved by one unit in its last place after the training.

Then the combinations of ``tests/combinations.py``: ways to train (accumulation, autocast, several cockpits, threads, ...), each
with every optimizer, on the architectures of the zoo in turn, a few steps each.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.page import arguments, publish, table
from cockpit_lite import load_run
from tests.combinations import COMBINATIONS, FEATURES, Combination
from tests.identity import EVERYTHING, CockpitFactory, Outcome, Watch, cockpit, compare, outcome
from tests.optimizers import OPTIMIZERS, OptimizerCase

STEPS = 50


def net() -> nn.Module:
    """Return a small convolutional net with batch norm and dropout of both kinds."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(72, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 10),
    )  # fmt: skip


def images() -> tuple[Tensor, Tensor]:
    """Return the digits and their labels."""
    digits = load_digits()
    return torch.as_tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.as_tensor(digits.target)


def training(case: OptimizerCase, inputs: Tensor, targets: Tensor, nudge: bool = False) -> Callable[[Watch], Any]:
    """Return the training function; with ``nudge`` one weight is moved by one unit in its last place at the end."""

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs[batch]), targets[batch])

    def train(watch: Watch) -> Any:
        model = net()
        optimizer = case.factory(model)
        losses = []
        with watch(model, optimizer):
            for _ in range(STEPS):
                batch = torch.randint(len(inputs), (64,))
                losses.append(case.step(optimizer, partial(loss, model, batch)).detach())
        if nudge:
            weight = next(model.parameters()).data.view(-1)
            weight[0] = torch.nextafter(weight[0], torch.tensor(torch.inf))
        return losses

    return train


def differences(plain: Outcome, other: Outcome) -> tuple[list[str], list[str]]:
    """Return what differs in the weights, and in everything else."""
    for result in (plain, other):
        if result.exception is not None:
            raise result.exception
    weights = list(compare(plain.observed["models"][0]["parameters"], other.observed["models"][0]["parameters"]))
    everything = list(compare(plain.observed, other.observed))
    return weights, [line for line in everything if not line.startswith(("/models/0/parameters/", "/models/0/state_dict/"))]


def verdict(found: list[str]) -> str:
    """Return one cell of the table."""
    return "identical" if not found else f"**{len(found)} differ**, first {found[0]}"


def combination_differences(combination: Combination, folder: Path) -> tuple[list[str], int]:
    """Train one combination plain and watched; return what differs, and how many readings were taken meanwhile."""
    plain = outcome(combination.train, None, seed=0)
    with contextlib.redirect_stderr(io.StringIO()):  # alerts
        watched = outcome(combination.train, CockpitFactory(folder, False, EVERYTHING), seed=0)
    runs = [load_run(run) for run in folder.parent.glob(f"{folder.name}*")]
    return list(compare(plain.observed, watched.observed)), sum(len(run.series(name)[0]) for run in runs for name in run.names)


def combinations_table(chosen: Sequence[Combination], folder: Path) -> tuple[str, int, list[str]]:
    """Return the table by way of training, how many combinations were identical, and a line for each that was not."""
    counts = {feature: [0, 0, 0] for feature in FEATURES}
    failures = []
    for number, combination in enumerate(chosen):
        found, readings = combination_differences(combination, folder / f"combination-{number}")
        count = counts[combination.feature]
        count[0] += not found
        count[1] += 1
        count[2] += readings
        if found:
            failures.append(f"- {combination.name}: {found[0].splitlines()[0][:160]}")
    rows = [[feature, f"{same} of {tried}", readings] for feature, (same, tried, readings) in counts.items() if tried]
    header = ["way of training", "everything identical", "readings taken meanwhile"]
    return table(header, rows), sum(count[0] for count in counts.values()), failures


def main() -> None:
    """Compare everything and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--combinations", type=int, default=len(COMBINATIONS), help="how many of them (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = images()
    rows = []
    identical = 0
    with tempfile.TemporaryDirectory() as folder:
        for case in OPTIMIZERS:
            train = training(case, *data)
            plain = outcome(train, None, seed=0)
            run = Path(folder, case.name)
            with contextlib.redirect_stderr(io.StringIO()):  # alerts: some of these optimizers diverge, which is no matter here
                watched = outcome(train, partial(cockpit, run=run, **EVERYTHING), seed=0)
            weights, rest = differences(plain, watched)
            identical += not weights
            readings = load_run(run)
            measured = sum(len(readings.series(name)[0]) for name in readings.names)
            rows.append([case.name, verdict(weights), verdict(rest), measured])
        chosen = COMBINATIONS[:: max(len(COMBINATIONS) // options.combinations, 1)][: options.combinations]
        combined, same, failures = combinations_table(chosen, Path(folder))
    first = OPTIMIZERS[0]
    control, rest = differences(
        outcome(training(first, *data), None, seed=0), outcome(training(first, *data, nudge=True), None, seed=0)
    )
    if not control:
        raise AssertionError("The control came out identical: the comparison sees nothing.")
    name = f"control: {first.name} plain, one weight moved by one unit in its last place"
    rows.append([name, verdict(control), verdict(rest), 0])
    header = ["optimizer", f"weights after {STEPS} steps", "everything else", "readings taken meanwhile"]
    target = "met" if identical == len(OPTIMIZERS) else "**missed**"
    body = f"""
A net with batch norm and dropout on scikit-learn's digits, {STEPS} steps, twice from the same seeds: plain, and with every
instrument at every step (`instruments="full", schedule=Every(1), budget=None`). Bits are compared. "Everything else" is losses,
gradients, buffers, optimizer state, states of the random number generators, hooks and attributes left behind, warnings.

Weights bit-identical for {identical} of {len(OPTIMIZERS)} optimizers (target: all): {target}.

{table(header, rows)}

### {len(chosen)} combinations of nets, optimizers and ways to train

{len({combination.architecture.name for combination in chosen})} architectures of the zoo, {len(OPTIMIZERS)} optimizers,
{
        len(FEATURES)
    } ways of training, a few steps each. Compared are weights, buffers, gradients, optimizer state, losses, random number
generators (Python's, numpy's, torch's), modes, hooks, keys of the state dictionaries, warnings and exceptions.

**{same} of {len(chosen)}** identical in everything (target: all of at least 200): {
        "met" if same == len(chosen) >= 200 else "**missed**"
    }.

{combined}

{chr(10).join(failures)}
"""
    publish("identity", "Watching changes nothing", body, options.print_only)


if __name__ == "__main__":
    main()
