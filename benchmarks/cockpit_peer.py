"""Beside Cockpit 1.0.2, the package whose instruments these are: the same values, and what each costs.

Both watch the same net from the same weights on the same batches, plain SGD. **Values**: each reading of both against its
definition in float64 (benchmarks/exact.py), at some steps of a training. **Cost**: a plain step, a step with one of their
instruments and a step with ours take turns in short blocks; processor time, one thread, every step measured; the figure is the
median over the rounds of a block's time over that of the plain block beside it.

Cockpit wants an extra: ``pip install -e ".[benchmark]"``, best in an environment of its own.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from benchmarks.exact import exact, extreme_eigenvalues, maximum_likelihood_alpha
from benchmarks.nets import Net, nets
from benchmarks.page import arguments, publish, table
from cockpit_lite import Every, load_run
from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.run import Run
from tests.identity import cockpit

TARGET = 5.0
LEARNING_RATE = 0.05
#: Steps of the training whose readings are compared, and how many there are in all: alpha looks one step ahead.
COMPARED = (1, 4, 7)
STEPS = 9
#: Theirs and ours tell histogram elements from zero by these magnitudes, each an edge of its own bins.
SMALL = (0.04, 10**-1.5)

MISSING = """Cockpit 1.0.2 is not there. It is an extra, best in an environment of its own, since it holds setuptools back:
    pip install -e ".[benchmark]\""""

#: Their quantity -> our instruments that measure the same; those that are not there yet are left out.
COUNTERPARTS: Mapping[str, tuple[str, ...]] = {
    "Loss": ("loss",),
    "Time": ("step_time",),
    "Parameters": (),
    "GradNorm": ("grad_norm",),
    "Distance": ("distance",),
    "UpdateSize": ("update_size",),
    "NormTest": ("norm_test",),
    "InnerTest": ("inner_product_test",),
    "OrthoTest": ("orthogonality_test",),
    "CABS": ("cabs",),
    "EarlyStopping": ("early_stopping",),
    "MeanGSNR": ("gsnr",),
    "Alpha": ("alpha",),
    "GradHist1d": ("grad_hist_1d",),
    "GradHist2d": ("grad_hist_2d",),
    "HessTrace": ("hessian_trace",),
    "HessMaxEV": ("max_eigenvalue",),
    "TICDiag": ("tic_diag",),
    "TICTrace": ("tic_trace",),
}
#: Seconds of one of their steps from which on one round has to do.
LONG = 5.0
DIAGONALS = ("HessTrace", "TICDiag", "TICTrace")
SECOND_ORDER = (*DIAGONALS, "HessMaxEV")
#: Their named configurations, as cockpit.utils.configuration has them.
ECONOMY = ("Alpha", "Distance", "GradHist1d", "GradNorm", "InnerTest", "Loss", "NormTest", "OrthoTest", "UpdateSize")
FULL = (*ECONOMY, "TICDiag", "HessTrace", "HessMaxEV", "GradHist2d")

OVERALL = ("all first-order together", "all together")
VALUE_HEADER = ("quantity", f"float64, steps {', '.join(map(str, COMPARED))}", "error of theirs", "error of ours", "why")
COST_HEADER = ("quantity", "theirs over plain", "ours over plain", "theirs / ours", "(theirs - 1) / (ours - 1)")

#: Why an error is larger than rounding.
WHY: Mapping[str, str] = {
    "Alpha": "ours takes the slopes' variance at the end for the start, too, where the step is not known yet; any optimizer",
    "GradHist1d": "share of elements near zero; theirs counts in float32, which stops at 16,777,216 a bin; ours draws elements",
    "HessTrace": "theirs is exact where BackPACK knows every module; ours is from random vectors, and says its standard error",
    "HessMaxEV": "theirs stops at a change below 1e-3, and finds the largest magnitude; ours says its residual",
    "TICDiag": "theirs is exact where BackPACK knows every module; ours has an estimated curvature",
    "TICTrace": "the same",
}

INTRODUCTION = """Both watch the same net, every step, plain SGD. Values: relative error against the definition in float64 at
three steps of a training, the greatest of them. Cost: whole step over a plain one, processor time, medians over rounds in which a
block of plain steps, one of theirs and one of ours take turns; (theirs - 1) / (ours - 1) is how many times more theirs adds.
Ours includes the hooks, the check of every parameter against the gradient, the rules and the log on disk; theirs keeps its
numbers in memory until it is asked to write them."""

CONCLUSION = """Curvature in float64 takes too long for 3C3D and is compared on the MLP.
Time and loss are recorded by us at every step, tracked or not. Parameters (a list of all weights at every step) has no
counterpart, on purpose: it is a checkpoint, not a reading. Their configuration economy is Alpha, Distance, GradHist1d, GradNorm,
InnerTest, Loss, NormTest, OrthoTest and UpdateSize; full adds TICDiag, HessTrace, HessMaxEV and GradHist2d."""

Step = Callable[[], None]


def counterparts(theirs: Iterable[str]) -> list[str]:
    """Return our instruments that measure the same as ``theirs``, as far as they are there."""
    found = [INSTRUMENTS.get(name) or _instrument_that_writes(name) for peer in theirs for name in COUNTERPARTS[peer]]
    return list(dict.fromkeys(kind.name for kind in found if kind is not None))


def _instrument_that_writes(reading: str) -> Any:
    return next((kind for kind in INSTRUMENTS.values() if reading in kind.readings), None)


# ---------------------------------------------------------------------------------------------------------- the other side


def peer_quantities(names: Iterable[str]) -> list[Any]:
    """Return quantities of Cockpit that measure at every step."""
    from cockpit import quantities
    from cockpit.utils.schedules import linear

    return [getattr(quantities, name)(track_schedule=linear(interval=1)) for name in names]


def peer_step(net: Net, model: nn.Module, names: Sequence[str]) -> tuple[Step, Any]:
    """Return a training step as Cockpit's documentation has it, and the cockpit."""
    from backpack import extend
    from cockpit import Cockpit as Peer

    model, loss_function = extend(model), extend(nn.CrossEntropyLoss())
    by_sample = nn.CrossEntropyLoss(reduction="none")
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE)
    peer = Peer(model.parameters(), quantities=peer_quantities(names))
    number = 0

    def step() -> None:
        nonlocal number
        optimizer.zero_grad()
        output = model(net.inputs)
        loss = loss_function(output, net.targets)
        info = {"batch_size": len(net.inputs), "loss": loss, "optimizer": optimizer}
        if "Alpha" in names:  # nobody else needs them
            info["individual_losses"] = by_sample(output, net.targets)
        with peer(number, info=info):
            loss.backward(create_graph=peer.create_graph(number))
        optimizer.step()
        number += 1

    return step, peer


# ------------------------------------------------------------------------------------------------------------------- values


@dataclass(frozen=True)
class Comparison:
    """One quantity at the compared steps: a list for each, with what it should be; NaN where there is no value."""

    name: str
    theirs: list[float]
    their_truth: list[float]
    ours: list[float]
    our_truth: list[float]

    @property
    def errors(self) -> tuple[float, float]:
        """Greatest relative error of theirs and of ours."""
        return greatest_error(self.theirs, self.their_truth), greatest_error(self.ours, self.our_truth)


def greatest_error(values: Sequence[float], truth: Sequence[float]) -> float:
    """Return the greatest relative error; NaN if a value is not there."""
    errors = [abs(value - true) / abs(true) for value, true in zip(values, truth, strict=True)]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _batches(net: Net) -> list[tuple[Tensor, Tensor]]:
    """Return batches that can be learnt from: classes differ in their mean."""
    draw = torch.Generator().manual_seed(3)
    means = torch.randn(10, *net.inputs.shape[1:], generator=draw)
    batches = []
    for _ in range(STEPS):
        targets = torch.randint(10, net.targets.shape, generator=draw)
        batches.append((torch.randn(net.inputs.shape, generator=draw) + 0.3 * means[targets], targets))
    return batches


def values(net: Net, folder: Path) -> tuple[list[Comparison], float]:
    """Train with both, and compare what they say with float64; also return how far the weights are apart at the end."""
    torch.manual_seed(0)
    model = net.factory()
    model(net.inputs)
    batches = _batches(net)
    their_model, our_model = copy.deepcopy(model), copy.deepcopy(model)
    moving = Net(net.name, net.factory, net.inputs.clone(), net.targets.clone())  # the batch is changed in place
    short = net.inputs.dim() == 2  # curvature of single samples of a convolution takes float64 too long
    names = [name for name in COUNTERPARTS if name not in ("Time", "Parameters", "GradHist2d")]
    names = [name for name in names if short or name not in SECOND_ORDER]
    step, peer = peer_step(moving, their_model, names)
    for inputs, targets in batches:
        moving.inputs.copy_(inputs)
        moving.targets.copy_(targets)
        step()
    points: list[nn.Module] = []
    optimizer = SGD(our_model.parameters(), lr=LEARNING_RATE)
    with cockpit(our_model, optimizer, run=folder, instruments=counterparts(names), schedule=Every(1), budget=None):
        for inputs, targets in batches:
            points.append(copy.deepcopy(our_model))
            optimizer.zero_grad()
            F.cross_entropy(our_model(inputs), targets).backward()
            optimizer.step()
    apart = max(
        float((one.detach() - other.detach()).abs().max())
        for one, other in zip(their_model.parameters(), our_model.parameters(), strict=True)
    )
    found = [_truth(points, batches, number, short) for number in COMPARED]
    run, output = load_run(folder), peer.get_output()
    comparisons = [
        Comparison(
            name,
            [_their_value(output[number][name], name) for number in COMPARED],
            [truth[name] for truth in found],
            [_our_value(run, number, name) for number in COMPARED],
            [truth["GradHist1d of ours" if name == "GradHist1d" else name] for truth in found],
        )
        for name in names
    ]
    return comparisons, apart


def _truth(
    points: Sequence[nn.Module], batches: Sequence[tuple[Tensor, Tensor]], number: int, curvature: bool
) -> dict[str, float]:
    """Return every quantity of Cockpit at one step, by its definition."""
    weights = [torch.cat([p.detach().double().reshape(-1) for p in point.parameters()]) for point in points]
    step = weights[number + 1] - weights[number]
    here = exact(points[number], *batches[number], direction=step, bounds=SMALL, curvature=curvature)
    there = exact(points[number + 1], *batches[number + 1], direction=step, curvature=False)
    count, squared_norm = len(here.losses), here.gradient.square().sum()
    variance = (here.squared_norms.sum() - count * squared_norm) / (count - 1)
    sample_variance = here.variance * count / (count - 1)
    across = here.squared_norms - here.products.square() / squared_norm
    answers = {
        "Loss": here.loss,
        "GradNorm": squared_norm.sqrt(),
        "Distance": (here.weights - weights[0]).norm(),
        "UpdateSize": step.norm(),
        "NormTest": (variance / count / squared_norm).sqrt(),
        "InnerTest": ((here.products - squared_norm).square().sum() / (count * (count - 1))).sqrt() / squared_norm,
        "OrthoTest": (across.sum() / (count * (count - 1)) / squared_norm).sqrt(),
        "CABS": LEARNING_RATE * here.variance.sum() / here.loss,
        "EarlyStopping": 1 - count * (here.gradient.square() / (sample_variance + 1e-5)).mean(),
        "MeanGSNR": (here.gradient.square() / (here.variance + 1e-5)).mean(),
        "Alpha": maximum_likelihood_alpha(here, there, float(step.norm())),
        "GradHist1d": here.small[0],
        "HessTrace": here.curvature.sum(),
        "HessMaxEV": extreme_eigenvalues(points[number], *batches[number])[0] if curvature else math.nan,
        "TICDiag": (here.squares / (here.curvature + 1e-7)).sum(),
        "TICTrace": here.squares.sum() / here.curvature.sum(),
        "GradHist1d of ours": here.small[1],
    }
    return {name: float(value) for name, value in answers.items()}


def _their_value(value: Any, name: str) -> float:
    if name == "GradHist1d":
        counts = torch.as_tensor(value["hist"]).double()
        return float(counts[49:51].sum() / counts.sum())  # 100 bins from -2 to 2: the two beside zero
    if name in ("GradNorm", "Distance", "UpdateSize"):
        return math.hypot(*value)
    return float(sum(value)) if isinstance(value, list) else float(value)


def _our_value(run: Run, number: int, name: str) -> float:
    reading = next(iter(COUNTERPARTS[name]))
    if name == "Alpha":
        number += 1  # it is written at the second of its two steps
    if reading not in run.names:
        return math.nan
    steps, found = run.series(reading)
    if number not in steps:
        return math.nan
    value = found[list(steps).index(number)]
    if name == "GradHist1d":
        return float(sum(value[12:47]) / sum(value))  # the bins from -10^-1.5 to 10^-1.5
    return float(value)


# --------------------------------------------------------------------------------------------------------------------- cost


@dataclass(frozen=True)
class Cost:
    """Times of a step over that of a plain one."""

    theirs: float
    ours: float

    @property
    def times(self) -> float:
        """How many times longer their whole step takes."""
        return self.theirs / self.ours

    @property
    def extra_times(self) -> float:
        """How many times more theirs adds to a plain step; infinite where ours adds nothing that can be seen."""
        added = self.ours - 1
        return math.inf if added <= 0 else (self.theirs - 1) / added


def timed(step: Step, at_least: float = 0.05) -> float:
    """Return the seconds of a step, from a block that takes ``at_least`` so many."""
    gc.collect()
    count, start = 0, time.process_time()
    while not count or time.process_time() - start < at_least:
        step()
        count += 1
    return (time.process_time() - start) / count


def cost(net: Net, names: Sequence[str], folder: Path, seconds: float, rounds: int = 5) -> Cost:
    """Time blocks of plain steps, of theirs and of ours in turn, for about ``seconds`` and at least ``rounds`` rounds."""
    torch.manual_seed(0)
    model = net.factory()
    model(net.inputs)
    plain_model, their_model, our_model = (copy.deepcopy(model) for _ in range(3))
    plain_optimizer, our_optimizer = (SGD(one.parameters(), lr=1e-4) for one in (plain_model, our_model))
    their_step, _ = peer_step(net, their_model, names)

    def trained(one: nn.Module, optimizer: SGD) -> Step:
        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(one(net.inputs), net.targets).backward()
            optimizer.step()

        return step

    plain_step, our_step = trained(plain_model, plain_optimizer), trained(our_model, our_optimizer)
    instruments = counterparts(names)

    def ours() -> float:
        run = folder / str(len(list(folder.iterdir())))
        with cockpit(our_model, our_optimizer, run=run, instruments=instruments, schedule=Every(1), budget=None):
            our_step()
            our_step()  # what looks at two steps in a row has something to look at from here on
            return timed(our_step)

    plain_step()
    start = time.process_time()
    their_step()
    if time.process_time() - start > LONG:
        rounds = 1
    times: list[tuple[float, float, float]] = []
    until = time.monotonic() + seconds
    while len(times) < rounds or time.monotonic() < until:
        times.append((timed(plain_step), timed(their_step), ours()))
    return Cost(
        statistics.median(theirs / plain for plain, theirs, _ in times),
        statistics.median(our / plain for plain, _, our in times),
    )


# --------------------------------------------------------------------------------------------------------------------- page


def groups() -> dict[str, tuple[str, ...]]:
    """Return what is timed: their quantities one by one, and together."""
    first_order = tuple(name for name in COUNTERPARTS if name not in (*SECOND_ORDER, "Time", "Parameters"))
    alone = {name: (name,) for name in COUNTERPARTS}
    return {
        **alone,
        "all first-order together": first_order,
        "economy": ECONOMY,
        "full": FULL,
        "all together": tuple(name for name in COUNTERPARTS if name not in ("Time", "Parameters")),
    }


def value_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return a row of the table of values for each quantity."""
    rows = []
    for comparison in comparisons:
        truth = ", ".join(f"{value:.4g}" for value in comparison.their_truth)
        theirs, ours = map(_spelled, comparison.errors)
        rows.append([comparison.name, truth, theirs, ours, WHY.get(comparison.name, "")])
    return rows


def _spelled(error: float) -> str:
    return "no value" if math.isnan(error) else f"{error:.0e}"


def cost_row(name: str, found: Cost) -> list[str]:
    """Return a row of the table of costs."""
    extra = "ours adds nothing" if math.isinf(found.extra_times) else f"{found.extra_times:.0f}"
    return [name, f"{found.theirs:.2f}", f"{found.ours:.2f}", f"{found.times:.1f}", extra]


def verdict(found: Mapping[str, Mapping[str, Cost]]) -> str:
    """Return whether the target is met, for each net."""
    lines = []
    for net, rows in found.items():
        for name in OVERALL:
            one = rows[name]
            met = "met" if one.times >= TARGET else "**missed**"
            times = f"the whole step {one.times:.1f} times cheaper, what is added to a plain one {one.extra_times:.1f} times"
            lines.append(f"- {net}, {name}: {times}; target {TARGET:.0f} for the whole step: {met}.")
    return "\n".join(lines)


@dataclass(frozen=True)
class Measured:
    """What was found on one net: values, how far the weights of the two trainings are apart after it, and costs."""

    comparisons: list[Comparison]
    apart: float
    costs: dict[str, Cost]


def measure(net: Net, seconds: float, rounds: int) -> Measured:
    """Compare values and costs on one net."""
    with tempfile.TemporaryDirectory() as folder:
        comparisons, apart = values(net, Path(folder, "values"))
        costs = {}
        for name, theirs in groups().items():
            place = Path(folder, name)
            place.mkdir()
            costs[name] = cost(net, theirs, place, seconds, rounds)
    return Measured(comparisons, apart, costs)


def page(measured: Mapping[str, Measured]) -> str:
    """Return the section."""
    parts = []
    for net, found in measured.items():
        both = "bit-identical" if found.apart == 0 else f"apart by up to {found.apart:.1e}"
        rows = [cost_row(name, one) for name, one in found.costs.items()]
        parts.append(
            f"### {net}\n\nAfter {STEPS} steps the weights of the two trainings are {both}.\n\n"
            f"{table(VALUE_HEADER, value_rows(found.comparisons))}\n\n{table(COST_HEADER, rows)}\n"
        )
    answer = verdict({net: found.costs for net, found in measured.items()})
    return "\n\n".join([INTRODUCTION, answer, *parts, CONCLUSION])


def main() -> None:
    """Measure and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing for each row of each net (default 4)")
    parser.add_argument("--rounds", type=int, default=5, help="of timing for each row at least (default 5)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)  # pkg_resources, BackPACK's hooks, power iterations that gave up
    if importlib.util.find_spec("cockpit") is None:
        sys.exit(MISSING)
    torch.set_num_threads(1)
    measured = {net.name: measure(net, options.seconds, options.rounds) for net in nets()[:2]}
    publish("cockpit_peer", "Beside Cockpit 1.0.2", page(measured), options.print_only)


if __name__ == "__main__":
    main()
