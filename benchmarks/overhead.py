"""What watching costs: a plain step, and the same step watched by us and by others, in one run.

Plain steps, steps nobody measures, steps measured by each preset, and steps under what else people switch on to look inside
(``torch.autograd.detect_anomaly``, histograms of all weights and gradients as ``wandb.watch`` and TensorBoard take them, Cockpit
1.0.2) take turns in short blocks; the figure is the median over the rounds of a block's time over that of the plain block beside
it, with the middle half. What a budget makes of it over a whole training is the benchmark beside this one, ``budgets``.

Processor time, one thread. Cockpit and TensorBoard are left out, with a word, where they are not installed.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Optimizer

from benchmarks.cockpit_peer import ECONOMY, FULL, peer_step
from benchmarks.nets import Net
from benchmarks.page import arguments, publish, table
from benchmarks.per_sample import peak, timed_nets
from cockpit_lite import Every
from cockpit_lite.instrument import CURVATURE
from cockpit_lite.presets import resolve
from cockpit_lite.run_log import ReadingsReader
from tests.identity import cockpit

Step = Callable[[], Any]
#: Their named configurations; business adds these to economy.
BUSINESS = (*ECONOMY, "TICDiag", "HessTrace")
PEERS = {"economy": ECONOMY, "business": BUSINESS, "full": FULL}
PRESETS = ("light", "standard", "full")
#: Preset at every step over plain, by net.
TIME_TARGETS = {("3C3D", "standard"): 2.0, ("MLP", "standard"): 3.0, ("3C3D", "full"): 8.0}
UNTRACKED_TARGET, MEMORY_TARGET, BYTES_TARGET = 1.01, 1.15, 2048
BINS = 64
#: What takes so many plain steps is timed in two rounds only.
SLOW = 60.0


@dataclass(frozen=True)
class Case:
    """A net and the optimizer it is trained with."""

    net: Net
    lbfgs: bool = False

    @property
    def name(self) -> str:
        """With the optimizer where it is not SGD."""
        return self.net.name + (", LBFGS" if self.lbfgs else "")

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Return a new optimizer; it moves next to nothing, so that every step costs the same."""
        if self.lbfgs:
            return LBFGS(model.parameters(), lr=1e-4, max_iter=4, history_size=5)
        return SGD(model.parameters(), lr=1e-4)

    def step(self, model: nn.Module, optimizer: Optimizer, after_backward: Callable[[], Any] = lambda: None) -> Step:
        """Return a training step."""

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(self.net.inputs).flatten(0, -2), self.net.targets.flatten())
            loss.backward()
            after_backward()
            return loss

        def step() -> None:
            if self.lbfgs:
                optimizer.step(evaluate)  # type: ignore[arg-type]
            else:
                evaluate()
                optimizer.step()

        return step


def cases() -> list[Case]:
    """Return what is timed."""
    every = timed_nets()
    return [*map(Case, every), Case(every[0], lbfgs=True)]


# ------------------------------------------------------------------------------------------------------------------- ways


@contextlib.contextmanager
def _plain(case: Case, model: nn.Module, folder: Path) -> Iterator[Step]:
    yield case.step(model, case.optimizer(model))


@contextlib.contextmanager
def watched(case: Case, model: nn.Module, folder: Path, **options: Any) -> Iterator[Step]:
    """Open a cockpit and yield the step inside of it."""
    optimizer = case.optimizer(model)
    with contextlib.redirect_stderr(io.StringIO()), cockpit(model, optimizer, run=folder, **options):
        yield case.step(model, optimizer)


@contextlib.contextmanager
def _anomaly(case: Case, model: nn.Module, folder: Path) -> Iterator[Step]:
    plain = case.step(model, case.optimizer(model))

    def step() -> None:
        with torch.autograd.detect_anomaly():
            plain()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is on
        yield step


@contextlib.contextmanager
def _histograms(case: Case, model: nn.Module, folder: Path) -> Iterator[Step]:
    """Take a histogram of every weight and its gradient to the host, as ``wandb.watch(log="all", log_freq=1)`` does."""

    def take() -> None:
        for parameter in model.parameters():
            for tensor in (parameter.detach(), parameter.grad):
                if tensor is not None:
                    low, high = float(tensor.min()), float(tensor.max())
                    torch.histc(tensor, BINS, low, high if high > low else low + 1).tolist()

    yield case.step(model, case.optimizer(model), take)


@contextlib.contextmanager
def _tensorboard(case: Case, model: nn.Module, folder: Path) -> Iterator[Step]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder) as writer:
        number = 0

        def write() -> None:
            nonlocal number
            for name, parameter in model.named_parameters():
                writer.add_histogram(f"weights/{name}", parameter, number)
                if parameter.grad is not None:
                    writer.add_histogram(f"gradients/{name}", parameter.grad, number)
            number += 1

        yield case.step(model, case.optimizer(model), write)


@contextlib.contextmanager
def _peer(case: Case, model: nn.Module, folder: Path, names: tuple[str, ...]) -> Iterator[Step]:
    yield peer_step(case.net, model, names)[0]


Way = Callable[[Case, nn.Module, Path], contextlib.AbstractContextManager[Step]]


def _ours(**options: Any) -> Way:
    return lambda case, model, folder: watched(case, model, folder, **options)


#: The instruments of ``standard`` that need no second derivative.
_FIRST_ORDER_NAMES = [instrument.name for instrument in resolve("standard") if CURVATURE not in instrument.needs]
FIRST_ORDER = _ours(instruments=_FIRST_ORDER_NAMES, schedule=Every(1), budget=None)


def ways(case: Case, peers: bool = True) -> dict[str, Way]:
    """Return what is timed beside the plain step."""
    found: dict[str, Way] = {"untracked": _ours(schedule=lambda step: False, budget=None)}
    found.update({preset: _ours(instruments=preset, schedule=Every(1), budget=None) for preset in PRESETS})
    found["detect_anomaly"] = _anomaly
    found["histograms, as wandb.watch"] = _histograms
    if importlib.util.find_spec("tensorboard") is not None:
        found["TensorBoard histograms"] = _tensorboard
    if peers and importlib.util.find_spec("cockpit") is not None and case.net.name.startswith(("MLP", "3C3D")) and not case.lbfgs:
        for name, quantities in PEERS.items():
            found[f"Cockpit {name}"] = lambda case, model, folder, chosen=quantities: _peer(case, model, folder, chosen)
    return found


# ----------------------------------------------------------------------------------------------------------------- a step


@dataclass
class Timed:
    """Times of one way over plain, block by block, its peak memory over plain (without curvature, too), and its log."""

    ratios: list[float] = field(default_factory=list)
    memory: float = 0.0
    memory_of_first_order: float = 0.0
    bytes_a_step: float = 0.0
    numbers_a_step: int = 0
    problem: str = ""

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.ratios)

    @property
    def is_known(self) -> bool:
        """Whether two rounds have to do: of what takes a multiple of anything one would leave on, the spread says little."""
        return len(self.ratios) >= 2 and self.median > SLOW

    @property
    def spread(self) -> str:
        """The middle half."""
        if len(self.ratios) < 2:
            return ""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return f"{low:.2f} to {high:.2f}"


class Stopwatch:
    """Times blocks of steps of one case."""

    def __init__(self, case: Case, folder: Path, block_seconds: float = 0.1):
        torch.manual_seed(0)
        self.case, self.folder = case, folder
        self.model = case.net.factory()
        self.model(case.net.inputs)  # gives lazy layers their shape
        self._runs = 0
        self.block, self.block_seconds = 1, block_seconds
        self.plain_seconds = self.seconds(_plain)
        self.block = max(round(block_seconds / self.seconds(_plain)), 1)

    def seconds(self, way: Way) -> float:
        """Return the seconds of a step; the first steps do not count, and of a slow way a single one has to do."""
        self._runs += 1
        with way(self.case, copy.deepcopy(self.model), self.folder / str(self._runs)) as step:
            step()
            step()
            gc.collect()
            start, count = time.process_time(), 0
            while count < self.block and (not count or time.process_time() - start < 5 * self.block_seconds):
                step()
                count += 1
            return (time.process_time() - start) / count

    def times(self, wanted: Mapping[str, Way], seconds: float, rounds: int) -> dict[str, Timed]:
        """Time the ways in turn, each beside a plain block."""
        found = {name: Timed() for name in wanted}
        until, done = time.monotonic() + seconds, 0
        while done < rounds or time.monotonic() < until:
            for name, way in wanted.items():
                if found[name].problem or found[name].is_known:
                    continue
                plain = self.seconds(_plain)
                try:
                    found[name].ratios.append(self.seconds(way) / plain)
                except Exception as error:  # theirs knows few layers
                    found[name].problem = type(error).__name__
            done += 1
        base = self._peak(_plain)
        for name in ("untracked", *PRESETS):
            found[name].memory = self._peak(wanted[name]) / base
            if name != "untracked":
                found[name].bytes_a_step, found[name].numbers_a_step = self._log(wanted[name])
        if "standard" in found:
            found["standard"].memory_of_first_order = self._peak(FIRST_ORDER) / base
        return found

    def _peak(self, way: Way) -> int:
        there = sum(
            t.nbytes for t in [*self.model.parameters(), *self.model.buffers(), self.case.net.inputs, self.case.net.targets]
        )
        self._runs += 1
        with way(self.case, copy.deepcopy(self.model), self.folder / str(self._runs)) as step:
            step()
            step()
            return there + peak(step)

    def _log(self, way: Way, steps: int = 20) -> tuple[float, int]:
        """Return the bytes of log that a measured step takes, without the first ten, and the numbers of the last one."""
        self._runs += 1
        run = self.folder / str(self._runs)
        with way(self.case, copy.deepcopy(self.model), run) as step:
            for _ in range(steps):
                step()
        lengths = [len(line) + 1 for line in (run / "readings.jsonl").read_bytes().splitlines()]
        beginnings = [
            number for number, line in enumerate((run / "readings.jsonl").read_bytes().splitlines()) if b'"step":10,' in line
        ]
        *_, last = (line for line in ReadingsReader(run / "readings.jsonl").new_lines() if "values" in line)
        return sum(lengths[beginnings[0] :]) / (steps - 10), numbers_in([last["values"], last.get("how", {})])


# ------------------------------------------------------------------------------------------------------------------ the page


def numbers_in(value: Any) -> int:
    """Return how many numbers there are in parsed JSON, those that are spelled out as texts left out.

    >>> numbers_in({"loss": 0.5, "histogram": [[1, 2], [3, 4]], "how": {"kind": "exact", "residual": 0.1}})
    6
    """
    if isinstance(value, (list, dict)):
        return sum(map(numbers_in, value.values() if isinstance(value, dict) else value))
    return int(isinstance(value, (int, float)))


def judged(value: float, limit: float | None, form: str = ".2f") -> str:
    """Return one cell of the table."""
    return (
        format(value, form) if limit is None else f"**{value:{form}}** ({'met' if value <= limit else f'missed: {limit:{form}}'})"
    )


def step_rows(case: Case, found: Mapping[str, Timed], plain: float) -> list[list[str]]:
    """Return the rows of one net."""
    rows = [[case.name, "plain", f"{1e3 * plain:.2f} ms", "", "", ""]]
    short = case.net.name.split()[0].rstrip(",") if not case.lbfgs else ""
    for name, timed in found.items():
        if timed.problem or not timed.ratios:
            rows.append([case.name, name, timed.problem or "not timed", "", "", ""])
            continue
        limit = UNTRACKED_TARGET if name == "untracked" else TIME_TARGETS.get((short, name))
        memory = judged(timed.memory, MEMORY_TARGET if name == "standard" else None) if timed.memory else ""
        if timed.memory_of_first_order:
            memory += f"; without curvature {timed.memory_of_first_order:.2f}"
        log = judged(timed.bytes_a_step, BYTES_TARGET, ",.0f") if timed.bytes_a_step else ""
        if log:
            log += f", {timed.numbers_a_step:,} numbers"
        rows.append(
            [case.name, name, judged(timed.median, limit, ".3f" if name == "untracked" else ".2f"), timed.spread, memory, log]
        )
    return rows


def main() -> None:
    """Measure everything and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing for each net (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="at least so many (default 5)")
    parser.add_argument("--only", nargs="*", help="nets whose names begin so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in cases() if not options.only or case.name.startswith(tuple(options.only))]
    rows: list[list[str]] = []
    for case in chosen:
        with tempfile.TemporaryDirectory() as folder:
            stopwatch = Stopwatch(case, Path(folder))
            plain = statistics.median(stopwatch.seconds(_plain) for _ in range(5))
            rows += step_rows(case, stopwatch.times(ways(case), options.seconds, options.rounds), plain)
    missing = [
        name for name, module in (("Cockpit", "cockpit"), ("TensorBoard", "tensorboard")) if not importlib.util.find_spec(module)
    ]
    body = f"""
Blocks of plain steps and of each way take turns; time over plain is the median over the rounds, with the middle half. SGD unless
it says LBFGS (four evaluations a step). Histograms are of every weight and every gradient at every step. Bytes of log: of a
measured step, after the first ten. A number written out takes about ten bytes; one of a reading of five layers and more, of an
array, or of more than sixty single numbers half a byte to
five.{f" Not installed, and left out: {', '.join(missing)}." if missing else ""}

{table(["net", "way", "time over plain", "middle half", "peak memory over plain", "bytes of log a step"], rows)}

Nobody has to pay these at every step: a budget is on by default, see Budgets. Why targets are missed. Time of `standard`: the
curvature along the gradient by itself is a pass in forward mode, of up to five products for each of the forward pass, and a
third of a step is one of them: one to two plain steps, on the LSTM more (see Curvature). It comes on top of the plain step and
of the samples' statistics; on the MLP some thousand small operations and Python calls, which do not depend on the size of the
layers, weigh more than all arithmetic. Time of `full` on 3C3D: six products of the whole batch with the Hessian (the gradient's
and four more for the largest eigenvalue, one or two for the smallest) are about nine plain steps; the step once more when it is
known (a pass in forward mode along the update, and the loss behind it, for the trust ratio and the curvature noise) is one and a
half, the graph of a quarter of the batch and the random products with it another one and a half, the tangent kernel one, the
random gradient 0.7; all else takes less than two. With an adaptive optimizer (transformer, LSTM) the sharpness takes two or three
products more, each about two plain steps: six matrix products where a step takes three. Memory is what the step takes at its
peak; what is kept from step to step, the first weights and the last update, is counted in the section on all first-order
instruments. Without curvature `standard` takes what the second figure says; with it hardly more, since a forward mode keeps
nothing for a backward pass. On the MLP the gradient, the sums of squares, the weights before the step and the update are each as
large as the weights, two fifths of what a plain step takes; a quarter more is room for pieces of long tensors, in which norms and
signal over noise are taken (pieces a quarter as long would save a sixth of the plain memory, and take half as long again).
"""
    publish("overhead", "Overhead", body, options.print_only)


if __name__ == "__main__":
    main()
