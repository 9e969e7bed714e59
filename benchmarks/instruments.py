"""What instruments cost on a step that all of them measure: each alone, in presets, and all first-order ones together.

Plain steps and steps with instruments take turns in short blocks of the same model from the same weights, SGD, one thread,
processor time; every step is measured (``schedule=Every(1), budget=None``). The figure is the median over the rounds of a block's
time over that of the plain block beside it. The whole cockpit is in it: hooks, engine, instruments, rules and the log on disk.

First-order are the instruments of gradients, samples, updates and activations: they need neither curvature nor further passes
over the model, and do not look at data or wiring. An instrument's share is what leaving it out of all of them together saves:
what several need is done once, so that what one costs alone says little.

Memory is counted as in benchmarks/per_sample.py: the greatest sum of allocations by torch's profiler, and what was there before:
model and batch. Over two steps, since the profiler does not see that something is freed that was there before it began: what the
cockpit keeps from one step to the next is counted when the first of the two makes it.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from benchmarks.floor import account
from benchmarks.nets import Net
from benchmarks.page import arguments, publish, table
from benchmarks.per_sample import peak, timed_nets
from cockpit_lite import Every
from cockpit_lite.instrument import CURVATURE, DATA, LAST_STEP, PROBE_BATCH, REPLAY, WIRING
from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.presets import ALWAYS
from tests.identity import cockpit

#: All first-order instruments together, over a plain step; the MLP's step is too short for the common one.
TIME_TARGETS = {"MLP": 4.0, "": 2.5}
MEMORY_TARGET = 1.15

#: Needs that are met by further passes over the model or its graph.
FURTHER_PASSES = {CURVATURE, REPLAY, PROBE_BATCH}
#: Needs of instruments that look for faults in the batch and in how the loop is put together, not at the training's dynamics.
SURROUNDINGS = {DATA, WIRING}

TOGETHER = "all first-order instruments"
Selection = Sequence[str]


def without(needs: set[str], preset: str = "full") -> list[str]:
    """Return the names of the instruments of a preset that have none of ``needs``."""
    included = {"light": ("light",), "standard": ("light", "standard"), "full": ("light", "standard", "full")}[preset]
    return [kind.name for kind in INSTRUMENTS.values() if kind.preset in included and not needs & set(kind.needs)]


def first_order() -> list[str]:
    """Return the first-order instruments: of gradients, samples, updates and activations, without further passes."""
    return without(FURTHER_PASSES | SURROUNDINGS)


def selections() -> dict[str, Selection]:
    """Return what is timed."""
    return {
        "light": without(FURTHER_PASSES, "light"),
        "standard without curvature": without(FURTHER_PASSES, "standard"),
        TOGETHER: first_order(),
        "and those of data and wiring": without(FURTHER_PASSES),
    }


def shares(names: Selection) -> dict[str, Selection]:
    """Return all of ``names`` but one, by the one that is left out; those that are recorded at every step have no share."""
    return {name: [other for other in names if other != name] for name in names if name not in ALWAYS}


def training(net: Net, model: nn.Module, optimizer: SGD) -> Callable[[], None]:
    """Return a plain training step."""

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(net.inputs).flatten(0, -2), net.targets.flatten()).backward()
        optimizer.step()

    return step


class Timer:
    """Times blocks of steps of one net.

    Args:
        net: The net.
        folder: Where runs are written.
        block_seconds: How long a block of plain steps takes, roughly.
    """

    def __init__(self, net: Net, folder: Path, block_seconds: float = 0.05):
        torch.manual_seed(0)
        self.net, self.folder = net, folder
        self.model = net.factory()
        self.model(net.inputs)  # gives lazy layers their shape
        optimizer = SGD(self.model.parameters(), lr=1e-4)
        self.plain_step = training(net, self.model, optimizer)
        self._runs = 0
        for _ in range(3):
            self.plain_step()
        self.block = 1
        self.block = max(round(block_seconds / self.plain()), 2)

    def plain(self) -> float:
        """Return the seconds of a plain step, from one block."""
        return self._timed(self.plain_step)

    def watched(self, selection: Selection) -> float:
        """Return the seconds of a step that ``selection`` measures, from one block; the first steps do not count."""
        with self.watching(selection) as step:
            return self._timed(step)

    @contextlib.contextmanager
    def watching(self, selection: Selection) -> Iterator[Callable[[], None]]:
        """Open a cockpit on a copy of the model and yield its step, which has been taken three times."""
        model = copy.deepcopy(self.model)
        optimizer = SGD(model.parameters(), lr=1e-4)
        step = training(self.net, model, optimizer)
        self._runs += 1
        run = self.folder / str(self._runs)
        options = {"run": run, "instruments": list(selection), "schedule": Every(1), "budget": None}
        # One batch over and over is a fault that the cockpit names.
        with contextlib.redirect_stderr(io.StringIO()), cockpit(model, optimizer, **options) as watching:
            for _ in range(3):
                step()
            yield step
            observer = watching._observer
            assert observer is not None
            off = {name for name in selection if name not in {i.name for i in [*observer._instruments, *observer._companions]}}
            assert not off, f"switched off: {off}"

    def _timed(self, step: Callable[[], None]) -> float:
        gc.collect()
        start = time.process_time()
        for _ in range(self.block):
            step()
        return (time.process_time() - start) / self.block

    def ratios(self, wanted: Mapping[str, Selection], seconds: float, rounds: int = 5) -> tuple[dict[str, float], float]:
        """Return the median time over plain of each selection, from at least ``rounds`` rounds, and the plain step's seconds."""
        times: dict[str, list[float]] = {name: [] for name in wanted}
        plain: list[float] = []
        until = time.monotonic() + seconds
        while len(plain) < rounds or time.monotonic() < until:
            plain.append(self.plain())
            for name, selection in wanted.items():
                times[name].append(self.watched(selection))
        medians = {
            name: statistics.median(taken / base for taken, base in zip(found, plain, strict=True))
            for name, found in times.items()
        }
        return medians, statistics.median(plain)

    def memory(self, selection: Selection | None) -> int:
        """Return the peak bytes of a step: what it allocates, and what was there before."""
        there = sum(
            tensor.nbytes for tensor in [*self.model.parameters(), *self.model.buffers(), self.net.inputs, self.net.targets]
        )
        if selection is None:
            return there + peak(twice(self.plain_step))
        with self.watching(selection) as step:
            return there + kept_for_good(selection, self.model) + peak(twice(step))


def twice(step: Callable[[], None]) -> Callable[[], None]:
    """Return two steps."""

    def steps() -> None:
        step()
        step()

    return steps


def kept_for_good(selection: Selection, model: nn.Module) -> int:
    """Return the bytes of the first weights, which the distance from them needs."""
    return sum(parameter.nbytes for parameter in model.parameters()) * ("distance" in selection)


def kept(selection: Selection, model: nn.Module) -> int:
    """Return the bytes that have to be kept from step to step: the first weights, and the last update, which alpha needs."""
    needs = {need for name in selection for need in INSTRUMENTS[name].needs}
    update = sum(parameter.nbytes for parameter in model.parameters()) * (LAST_STEP in needs)
    return kept_for_good(selection, model) + update


def target(net: str) -> float:
    """Return the target for the time of all first-order instruments together."""
    return next(limit for name, limit in TIME_TARGETS.items() if net.startswith(name))


def judged(value: float, limit: float) -> str:
    """Return one cell of the table."""
    return f"**{value:.2f}** ({'met' if value <= limit else f'missed: {limit}'})"


def main() -> None:
    """Measure all nets and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each net (default 30), twice")
    parser.add_argument("--share-nets", type=int, default=2, help="of how many nets each instrument's share is timed (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    together, by_instrument, least_time = [], {}, []
    every = timed_nets()
    for position, net in enumerate(every):
        with tempfile.TemporaryDirectory() as folder:
            timer = Timer(net, Path(folder))
            ratios, plain = timer.ratios(selections(), options.seconds)
            base = timer.memory(None)
            for name, selection in selections().items():
                space, limit = timer.memory(selection) / base, target(net.name)
                cells = (
                    (judged(ratios[name], limit), judged(space, MEMORY_TARGET))
                    if name == TOGETHER
                    else (f"{ratios[name]:.2f}", f"{space:.2f}")
                )
                least = (base + kept(selection, timer.model)) / base
                together.append([net.name, name, len(selection), *cells, f"{least:.2f}"])
            together.append([net.name, "plain", 0, f"{1e3 * plain:.2f} ms", f"{base / 2**20:.1f} MB", ""])
            if net.name.startswith("MLP"):
                with timer.watching(first_order()) as step:
                    least_time = account(timer.model, len(net.inputs), timer.plain_step, step)
            if position < options.share_nets:
                but_one = {TOGETHER: first_order(), **shares(first_order())}
                found, _ = timer.ratios(but_one, options.seconds)
                by_instrument[net.name] = {name: found[TOGETHER] - found[name] for name in but_one if name != TOGETHER}
    body = f"""
Plain steps and steps that all the named instruments measure take turns (SGD, one thread, processor time, medians). Everything is
in it: hooks, engine, instruments, rules, log. First-order: of gradients, samples, updates and activations, without curvature and
further passes over the model. Targets for them together: {TIME_TARGETS[""]} times a plain step, {TIME_TARGETS["MLP"]} on the MLP,
and {MEMORY_TARGET} times its peak memory.

{table(["net", "instruments", "how many", "time of the step over plain", "peak memory over plain", "least possible"], together)}

Least possible is what the plain step takes and what has to be kept from step to step: the first weights (`distance`) and the last
update (`alpha`), each as large as all weights. The target for the memory is below that where weights are a large part of what
a plain step takes, and can only be met there without these two. Time on the MLP: its step is so short that the small operations
of thirty instruments, and of the engine, weigh more than its matrix products. What all first-order instruments take at the least,
by operations alone, without hooks, Python, rules and log, in plain steps and beside the plain step itself:

{table(["operations", "plain steps"], least_time)}
"""
    if by_instrument:
        order = sorted(shares(first_order()), key=lambda name: -max(found[name] for found in by_instrument.values()))
        rows = [[f"`{name}`", *(f"{found[name]:.2f}" for found in by_instrument.values())] for name in order]
        body += f"""
An instrument's share: by how much of a plain step all together get cheaper without it. What several need (the per-sample engine)
is nobody's share. What is below zero shows how wide the timing spreads: shares as small as that say nothing.

{table(["instrument", *by_instrument], rows)}
"""
    publish("instruments", "All first-order instruments together", body, options.print_only)


if __name__ == "__main__":
    main()
