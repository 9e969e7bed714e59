"""What curvature costs and how far it can be trusted.

Real trainings, on the images of handwritten digits that come with scikit-learn and, for the transformer, on the text of two
modules of Python's standard library, measured at every tenth step. What is compared sees the same weights and the same batch.

A *forward+backward* is a plain training step of the same net, timed beside; processor time, one thread, medians over the rounds.
Memory is counted by torch's profiler, as in the section on per-sample statistics.

``--seconds`` are for the searches of one training: once they are over it ends, and after half of them only our own searches go
on, which is why methods have been measured at different numbers of steps. With the default everything takes about 12 minutes on
one core.

PyHessian and curvlinops want an extra: ``pip install -e ".[benchmark]"``; without them their rows are missing.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import json.decoder
import json.encoder
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.stats import wasserstein_distance
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from benchmarks.nets import Recurrent, conv, mlp
from benchmarks.page import arguments, publish, table
from benchmarks.per_sample import Transformer, peak
from cockpit_lite import Cockpit, Every
from cockpit_lite.curvature import Curvature, CurvatureMemory, ForwardProbe, Krylov
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.instrument import CURVATURE, Instrument
from cockpit_lite.instruments import INSTRUMENTS
from cockpit_lite.probes.replay import Replay
from cockpit_lite.probes.sampled_curvature import SampledCurvature

TRIO = ("max_eigenvalue", "hessian_trace", "curvature_along_gradient")
SHARE = 0.25  # of the batch, where the largest eigenvalue is estimated from some samples
#: Forward+backwards of a whole tracked step: with the three, and with all curvature instruments.
TARGETS = {"trio": 6.0, "all": 10.0}
PRODUCTS_TARGET, MOST_PRODUCTS_TARGET, ERROR_TARGET, TRACE_TARGET = 5, 12, 0.03, 0.05
EVERY = 10
GROWTH_BATCH, GROWTH_PRODUCTS = 2, 6


@dataclass(frozen=True)
class Task:
    """A training.

    Attributes:
        name: Of the net, with the batch size.
        factory: Makes the model.
        inputs: All of them.
        targets: Classes.
        batch: Size of a batch.
        optimizer: Makes the optimizer.
    """

    name: str
    factory: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    batch: int
    optimizer: Callable[[nn.Module], Optimizer]

    def build(self) -> nn.Module:
        """Return a model from the same seed each time, lazy layers with their shape."""
        torch.manual_seed(0)
        model = self.factory()
        model(self.inputs[:2])
        return model

    def batches(self) -> Iterator[Tensor]:
        """Yield positions of samples without end."""
        draw = torch.Generator().manual_seed(1)
        while True:
            yield torch.randint(len(self.inputs), (self.batch,), generator=draw)

    def loss(self, model: nn.Module, chosen: Tensor) -> Tensor:
        """Return the mean cross entropy of a batch."""
        return F.cross_entropy(model(self.inputs[chosen]).flatten(0, -2), self.targets[chosen].flatten())


def tasks() -> list[Task]:
    """Return the trainings."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None]
    images, labels = (images - images.mean()) / images.std(), torch.tensor(digits.target)
    flat = F.interpolate(images, size=(28, 28), mode="bilinear").flatten(1)
    large = F.interpolate(images, size=(32, 32), mode="bilinear")
    text = "".join(inspect.getsource(module) for module in (json.decoder, json.encoder)).encode()
    tokens = torch.tensor(list(text[: len(text) // 65 * 65])).view(-1, 65)
    colours = large.expand(-1, 3, -1, -1).contiguous()
    return [
        Task("MLP 784-256-128-10, batch 128, SGD", mlp, flat, labels, 128, lambda m: SGD(m.parameters(), lr=0.05)),
        Task("3C3D, batch 64, SGD", conv, colours, labels, 64, lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9)),
        Task(
            "transformer, d 128, 4 layers, batch 16, Adam",
            Transformer, tokens[:, :-1], tokens[:, 1:], 16, lambda m: Adam(m.parameters(), lr=1e-3),
        ),
        Task("LSTM, 32 steps, batch 32, Adam", Recurrent, large[:, 0], labels, 32, lambda m: Adam(m.parameters(), lr=3e-3)),
    ]  # fmt: skip


def watch(task: Task, model: nn.Module, chosen: Tensor) -> tuple[Tensor, ForwardCall]:
    """Return the loss of one batch, and the call of the model that it came from."""
    probe = ForwardProbe(model)
    probe.start()
    loss, call = task.loss(model, chosen), probe.call
    probe.stop()
    assert call is not None
    return loss, call


def look(task: Task, model: nn.Module, chosen: Tensor, memory: CurvatureMemory | None = None, seed: int = 0) -> Curvature:
    """Return the curvature of one batch, as a tracked step sees it."""
    loss, call = watch(task, model, chosen)
    parameters = dict(model.named_parameters())
    return Curvature(loss, parameters, torch.Generator().manual_seed(seed), model=model, forward=call, memory=memory)


# The largest eigenvalue ---------------------------------------------------------------------------------------------


@dataclass
class Found:
    """Products, relative errors and times of one method along a training; ``failure``: why it has none."""

    failure: str = ""
    products: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, products: int, value: float, exact: float, seconds: float) -> None:
        """Take one measurement."""
        self.products.append(products)
        self.errors.append(abs(value / exact - 1))
        self.seconds.append(seconds)

    def cells(self, plain: float) -> list[str]:
        """Return a row's cells; ``plain`` is the time of a plain step."""
        if self.failure:
            return [self.failure, *["-"] * 5]
        median, most = statistics.median(self.products), max(self.products)
        errors = [f"{statistics.median(self.errors):.2%}", f"{max(self.errors):.1%}"]
        return [f"{median:g}", str(most), *errors, f"{statistics.median(self.seconds) / plain:.1f}", str(len(self.products))]


#: What a method is given: the trained model, the batch, the curvature that is there, and a random vector to start with.
Method = Callable[["Task", nn.Module, Tensor, Curvature, Tensor], tuple[float, int]]


def power_iteration(task: Task, model: nn.Module, chosen: Tensor, curvature: Curvature, start: Tensor) -> tuple[float, int]:
    """Return the value and the number of products, with the rule of Cockpit and of PyHessian: 100 at most, 1e-3 of change."""
    vector, value = start / start.norm(), 0.0
    for spent in range(1, 101):
        image = curvature.product(vector)
        last, value = value, float(vector @ image)
        vector = image / image.norm()
        if spent > 1 and abs(value - last) / (abs(last) + 1e-6) < 1e-3:
            break
    return value, spent


def by_scipy(task: Task, model: nn.Module, chosen: Tensor, curvature: Curvature, start: Tensor) -> tuple[float, int]:
    """Return the value and the number of products of scipy's implicitly restarted Lanczos method, to 1e-2."""
    return _eigsh(lambda vector: curvature.product(torch.from_numpy(vector.ravel()).float()).numpy(), start)


def cold_lanczos(task: Task, model: nn.Module, chosen: Tensor, curvature: Curvature, start: Tensor) -> tuple[float, int]:
    """Return the value and the number of products of our own search from a random vector."""
    search = Krylov(curvature.product, [start], torch.Generator().manual_seed(0))
    return search.top(max_products=40).values[0], search.spent


class TokenLoss(nn.CrossEntropyLoss):
    """The mean over all predictions, of whatever shape."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss."""
        return super().forward(outputs.flatten(0, -2), targets.flatten())


def by_curvlinops(task: Task, model: nn.Module, chosen: Tensor, curvature: Curvature, start: Tensor) -> tuple[float, int]:
    """Return the value and the number of products of scipy with the linear operator of curvlinops, as its examples have it."""
    from curvlinops import HessianLinearOperator

    model = copy.deepcopy(model)
    operator = HessianLinearOperator(
        model,
        TokenLoss(),
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        [(task.inputs[chosen], task.targets[chosen])],
        check_deterministic=False,
        batch_size_fn=len,
    ).to_scipy()
    return _eigsh(operator.matvec, start)


def by_pyhessian(task: Task, model: nn.Module, chosen: Tensor, curvature: Curvature, start: Tensor) -> tuple[float, int]:
    """Return the value and the number of products of PyHessian, which puts the model into eval mode."""
    peer: Any = importlib.import_module("pyhessian.hessian")  # the package has a class of that name
    spent, multiply = 0, peer.hessian_vector_product

    def counted(*args: object) -> object:
        nonlocal spent
        spent += 1
        return multiply(*args)

    torch.manual_seed(0)
    peer.hessian_vector_product = counted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a gradient with a graph
            search = peer.hessian(
                copy.deepcopy(model),
                lambda outputs, targets: F.cross_entropy(outputs.flatten(0, -2), targets.flatten()),
                data=(task.inputs[chosen], task.targets[chosen]),
                cuda=False,
            )
            (value,), _ = search.eigenvalues()
    finally:
        peer.hessian_vector_product = multiply
    return float(value), spent


def _eigsh(product: Callable[[np.ndarray], np.ndarray], start: Tensor) -> tuple[float, int]:
    spent = 0

    def multiply(vector: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        return product(vector)

    operator = LinearOperator((start.numel(), start.numel()), multiply, dtype="float32")
    (value,) = eigsh(operator, k=1, which="LA", tol=1e-2, v0=start.numpy(), return_eigenvectors=False)
    return float(value), spent


def methods() -> dict[str, Method]:
    """Return what is compared with; packages that are not installed are left out."""
    found: dict[str, Method] = {
        "Lanczos, cold": cold_lanczos,
        "scipy eigsh": by_scipy,
        "power iteration, as Cockpit": power_iteration,
    }
    if importlib.util.find_spec("curvlinops"):
        found["scipy eigsh on curvlinops"] = by_curvlinops
    if importlib.util.find_spec("pyhessian"):
        found["PyHessian"] = by_pyhessian
    return found


def eigenvalues(task: Task, steps: int, limit: float = float("inf")) -> tuple[dict[str, Found], float]:
    """Measure the largest eigenvalue at every tenth step of a training, by all methods; return also the time of a plain step.

    Args:
        task: The training.
        steps: No more than these.
        limit: Processor time in seconds; after half of it only our own search goes on, and then the training ends.
    """
    begun = time.process_time()
    model, memory = task.build(), CurvatureMemory()
    optimizer = task.optimizer(model)
    found: dict[str, Found] = {"cockpit-lite": Found(), f"cockpit-lite, {SHARE:.0%} of the batch": Found()}
    plain: list[float] = []
    for step, chosen in zip(range(steps), task.batches(), strict=False):
        if step % EVERY == 0:
            used = time.process_time() - begun
            if used > limit:
                break
            curvature = look(task, model, chosen, memory, step)
            begin = time.process_time()
            value = curvature.top_eigenpairs().values[0]
            ours, spent = time.process_time() - begin, curvature.products
            exact = curvature.top_eigenpairs(tolerance=1e-4, max_products=spent + 40).values[0]
            begin = time.process_time()
            part = curvature.sub_batch(SHARE)
            estimate = part.top_eigenpairs().values[0]
            share = time.process_time() - begin
            start = torch.randn(curvature.dimension, generator=torch.Generator().manual_seed(step))
            peers: dict[str, tuple[float, int, float]] = {}
            for name, method in methods().items() if not step or used < limit / 2 else ():
                begin = time.process_time()
                try:
                    peers[name] = (*method(task, model, chosen, curvature, start), time.process_time() - begin)
                except RuntimeError as error:  # forward-mode derivatives that a kernel does not have, of one of the peers
                    found[name] = Found(failure=f"{type(error).__name__}: {str(error).splitlines()[0][:100]}")
            exact = max([exact, *(peers[name][0] for name in ("Lanczos, cold", "scipy eigsh") if name in peers)])
            found["cockpit-lite"].add(spent, value, exact, ours)
            found[f"cockpit-lite, {SHARE:.0%} of the batch"].add(part.products, estimate, exact, share)
            for name, (value, spent, seconds) in peers.items():
                found.setdefault(name, Found()).add(spent, value, exact, seconds)
        begin = time.process_time()
        optimizer.zero_grad()
        task.loss(model, chosen).backward()
        optimizer.step()
        plain.append(time.process_time() - begin)
    return found, statistics.median(plain)


# Costs of a whole step -----------------------------------------------------------------------------------------------


def costs(task: Task, instruments: Sequence[str | Instrument], rounds: int) -> tuple[float, float]:
    """Return the time of a tracked step and its peak memory, both over the plain step's."""
    plain, watched = task.build(), task.build()
    optimizers = task.optimizer(plain), task.optimizer(watched)
    batches = task.batches()

    def step(model: nn.Module, optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        optimizer.step()

    def timed(model: nn.Module, optimizer: Optimizer) -> float:
        start = time.process_time()
        step(model, optimizer)
        return time.process_time() - start

    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        cockpit = Cockpit(
            watched, optimizers[1], run=Path(folder) / "run", instruments=list(instruments), schedule=Every(1), budget=None
        )
        cockpit._write_results = lambda: None  # type: ignore[method-assign]  # no report of a run that nobody looks at
        with cockpit:
            for _ in range(3 + rounds):
                beside = timed(plain, optimizers[0])
                ratios.append(timed(watched, optimizers[1]) / beside)
            peaks = [peak(partial(step, model, optimizer)) for model, optimizer in zip((plain, watched), optimizers, strict=True)]
    there = 2 * sum(parameter.nbytes for parameter in plain.parameters())
    return statistics.median(ratios[3:]), (there + peaks[1]) / (there + peaks[0])


def parts(task: Task, rounds: int) -> list[float]:
    """Return what a tracked step is made of, each over the time of a plain step.

    Returns:
        A pass in forward mode along the gradient, the gradient with a graph, a product with the Hessian, the graph of a share of
        the batch, and a product with that.
    """
    model = task.build()
    optimizer, batches = task.optimizer(model), task.batches()
    ratios: list[list[float]] = []
    for _ in range(2 + rounds):
        chosen = next(batches)
        start = time.process_time()
        optimizer.zero_grad()
        task.loss(model, chosen).backward()
        optimizer.step()
        plain = time.process_time() - start
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        gradient = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        replay = Replay(*watch(task, model, chosen))
        start = time.process_time()
        replay.expand(weights, gradient)
        taken = [(time.process_time() - start) / plain]
        curvature = look(task, model, chosen)
        with curvature.undisturbed():
            for part in (
                curvature.flat_gradient,
                lambda view=curvature: view.product(view.flat_gradient()),
                lambda view=curvature: view.sub_batch(SHARE).flat_gradient(),
                lambda view=curvature: view.sub_batch(SHARE).product(view.flat_gradient()),
            ):
                start = time.process_time()
                part()
                taken.append((time.process_time() - start) / plain)
        ratios.append(taken)
    return [statistics.median(column) for column in zip(*ratios[2:], strict=True)]


def least(made_of: Sequence[float], products: float) -> tuple[float, float]:
    """Return what a tracked step takes at least, with the curvature along the gradient alone, and with the three.

    Args:
        made_of: The :func:`parts` of a step.
        products: With the whole batch, that the largest eigenvalue takes; the one with the gradient is among them.
    """
    forwards, gradient, product, graph_of_share, product_of_share = made_of
    return 1 + forwards, 1 + gradient + products * product + graph_of_share + product_of_share


def curvature_instruments() -> list[str]:
    """Return all that look at second derivatives."""
    return [name for name, instrument in INSTRUMENTS.items() if CURVATURE in instrument.needs]


# The Gauss-Newton trace ------------------------------------------------------------------------------------------------


def sampled_trace(task: Task, steps: int, draws: int) -> tuple[float, float]:
    """Return the relative standard deviation of the sampled trace after some training, and what a draw costs."""
    model = task.build()
    optimizer, batches = task.optimizer(model), task.batches()
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model, next(batches)).backward()
        optimizer.step()
    chosen = next(batches)
    parameters = dict(model.named_parameters())
    forward, sampler, draw = ForwardProbe(model), SampledCurvature(model, parameters), torch.Generator().manual_seed(0)
    values, ratios = [], []
    for _ in range(draws):
        start = time.process_time()
        task.loss(model, chosen).backward()
        plain = time.process_time() - start
        forward.start()
        start = time.process_time()
        sampler.start(squares=False)
        loss = task.loss(model, chosen)
        without = time.process_time()
        assert forward.call is not None
        sample = sampler.draw(loss, forward.call, draw)
        values.append(float(sample.trace(parameters).value))
        sampler.stop()
        # What the draw adds; the forward pass is the user's own.
        ratios.append((time.process_time() - without) / plain)
        forward.stop()
    return statistics.stdev(values) / statistics.mean(values), statistics.median(ratios)


# The spectral density ----------------------------------------------------------------------------------------------------


def densities() -> list[list[str]]:
    """Compare sampled densities with dense spectra of two small nets."""
    digits = load_digits()
    inputs, labels = torch.tensor(digits.data, dtype=torch.float64)[:256] / 8 - 1, torch.tensor(digits.target)[:256]
    nets = {
        "MLP 64-16-10, tanh": nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)),
        "conv net, ReLU": nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
        ),
    }
    rows = []
    for name, model in nets.items():
        model.double()
        optimizer = SGD(model.parameters(), lr=0.5)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        parameters = dict(model.named_parameters())
        curvature = Curvature(F.cross_entropy(model(inputs), labels), parameters, torch.Generator().manual_seed(0))
        units = torch.eye(curvature.dimension, dtype=torch.float64)
        exact = torch.linalg.eigvalsh(torch.stack([curvature.product(unit) for unit in units])).numpy()
        width = float(exact[-1] - exact[0])
        for steps, probes in ((10, 1), (10, 5), (30, 5)):
            found = curvature.spectral_density(steps, probes)
            weights = np.maximum(found.weights.numpy(), 0)
            distance = wasserstein_distance(found.nodes.numpy(), exact, weights)
            rows.append([name, str(curvature.dimension), str(steps), str(probes), f"{distance / width:.2%}"])
    return rows


# Growth --------------------------------------------------------------------------------------------------------------------


#: Vectors of the size of the model that are there at a time: weights, gradients, graph, products, basis. For what must fit.
ROOM = 24


def free_memory() -> int:
    """Return how many bytes there are for whoever asks: what the system would give up for it counts."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def growth(sizes: Sequence[int]) -> list[list[str]]:
    """Measure the largest eigenvalue of ever larger nets; what does not fit into the memory that is left is skipped."""
    rows = []
    for size in [1000, *sizes]:  # the first one finds code, and is no row
        needed, left = ROOM * 4 * size, free_memory()
        if needed > left:
            skipped = f"skipped: needs {needed / 2**30:.0f} GiB, {left / 2**30:.0f} GiB are free"
            rows.append([f"{size:.1e}", skipped, *["-"] * 5])
            continue
        width = int((size / 2) ** 0.5)
        model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        inputs, labels = torch.randn(GROWTH_BATCH, width), torch.arange(GROWTH_BATCH) % 10
        for _ in range(2):  # the first one finds memory and code
            start = time.process_time()
            F.cross_entropy(model(inputs), labels).backward()
            plain = time.process_time() - start
            model.zero_grad()
        parameters = dict(model.named_parameters())
        curvature = Curvature(F.cross_entropy(model(inputs), labels), parameters, torch.Generator().manual_seed(0))
        start = time.process_time()
        pairs = curvature.top_eigenpairs(max_products=GROWTH_PRODUCTS)
        spent = time.process_time() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        elements = sum(parameter.numel() for parameter in model.parameters())
        rows.append(
            [
                f"{elements:.1e}",
                f"{plain:.2g} s",
                str(curvature.products),
                f"{spent / plain:.1f}",
                str(curvature.krylov.capacity),
                f"{memory:.1f} GiB",
                f"{pairs.errors[0] / pairs.values[0]:.1%}",
            ]
        )
        del model, curvature, pairs, parameters
    return rows[1:]


def main() -> None:
    """Measure everything and write the section."""
    parser = arguments(__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of each training, at most (default 100)")
    parser.add_argument("--seconds", type=float, default=60, help="for the searches along each training (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="of timing (default 5)")
    parser.add_argument("--draws", type=int, default=20, help="of the Gauss-Newton trace (default 20)")
    parser.add_argument("--largest", type=float, default=1e8, help="number of parameters of the largest net (default 1e8)")
    parser.add_argument("--only", nargs="*", default=[], metavar="NET", help="only trainings whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    misses: list[str] = []
    along, whole, pieces, traces = [], [], [], []
    # First: the peak of the process's memory is theirs.
    grown = growth([10**exponent for exponent in range(5, 9) if 10**exponent <= options.largest])
    for task in tasks():
        if options.only and not task.name.startswith(tuple(options.only)):
            continue
        methods_found, plain = eigenvalues(task, options.steps, options.seconds)
        usual = statistics.median(methods_found["cockpit-lite"].products)
        for method, found in methods_found.items():
            along.append([task.name, method, *found.cells(plain)])
            if method == "cockpit-lite":
                median, most, error = statistics.median(found.products), max(found.products), max(found.errors)
                if median > PRODUCTS_TARGET or most > MOST_PRODUCTS_TARGET or error > ERROR_TARGET:
                    misses.append(f"{task.name}: median {median:g} products, at most {most}, largest error {error:.1%}")
        row = [task.name]
        for kind, names in (("along", ["curvature_along_gradient"]), ("trio", list(TRIO)), ("all", curvature_instruments())):
            ratio, memory = costs(task, names, options.rounds)
            row.extend([f"{ratio:.1f}", f"{memory:.2f}"])
            if ratio > TARGETS.get(kind, float("inf")):
                misses.append(f"{task.name}: {kind} {ratio:.1f} forward+backwards instead of {TARGETS[kind]:g}")
        whole.append(row)
        made_of = parts(task, options.rounds)
        pieces.append([task.name, *(f"{value:.2f}" for value in [*made_of, *least(made_of, usual)])])
        cells = []
        for steps in (0, options.steps // 2):
            spread, cost = sampled_trace(task, steps, options.draws)
            cells.extend([f"{spread:.1%}", f"{cost:.2f}"])
            if spread > TRACE_TARGET or cost > 1:
                misses.append(f"{task.name}: Gauss-Newton trace {spread:.1%} at {cost:.2f} forward+backwards, step {steps}")
        traces.append([task.name, *cells])
    count = len(curvature_instruments())
    sections = [
        (__doc__ or "").strip(),
        f"**Largest eigenvalue**, every {EVERY} steps of {options.steps}: Hessian-vector products, and errors against searches "
        f"to 1e-4. Targets: {PRODUCTS_TARGET} or less on the median, {MOST_PRODUCTS_TARGET} at most, largest error under "
        f"{ERROR_TARGET:.0%}. Products with the last layers, which cost less, are not counted, but their time is: *time* is the "
        "median of a search in forward+backwards. Of a share of the batch the error is what that makes it too large.",
        table(["training", "method", "products, median", "most", "error, median", "largest", "time", "measured at"], along),
        "**Whole tracked step** in forward+backwards, the plain step included, and peak memory over plain: with the curvature "
        "along the gradient alone, as in `standard` (in forward mode, when the user's graph is gone; by a graph that was 2.1 "
        "times the plain memory on 3C3D and 4.5 times on the transformer), "
        f"with {', '.join(f'`{name}`' for name in TRIO)} (target {TARGETS['trio']:g}), and with all {count} "
        f"instruments that look at second derivatives (target {TARGETS['all']:g}). Random products are of a quarter of the "
        "batch, eigenvalues and sampled diagonals of the whole.",
        table(["training", "along the gradient", "memory", "three", "memory", f"all {count}", "memory"], whole),
        "What these steps are made of, in forward+backwards. For each matrix of weights a training step takes three matrix "
        "products and a product with the Hessian six, so no less than two training steps where a net is made of nothing else; "
        "that of a small net is as much Python as arithmetic. A pass in forward mode, which gives one number along one "
        "direction, takes up to five matrix products, in the first layer two: it measures the curvature along the gradient where "
        "nobody else wants a product. A search takes as many of them as the first table says, beside the "
        "plain step, the gradient with a graph and the graph and one product of a share of the batch for the trace. *Least* is "
        "what these add up to, with the curvature along the gradient alone and with the three, at the median number of products: "
        "where it is above the target, that is why it is missed. What would lower it is not offered, because it would be wrong: "
        "the largest eigenvalue of a quarter of the batch is too large by a fifth to two thirds in the median (first table), and "
        "the curvature along the gradient of a quarter of the batch was off by a tenth to 70% on 3C3D and by several times its "
        "value on the LSTM, with a standard error that said a hundredth where the Hessian has negative eigenvalues. The smallest "
        "eigenvalue without its second product was off by 15% to 37% of the largest magnitude on the MLP, with it by 5% to 28%.",
        table(
            [
                *(
                    "training",
                    "forward mode",
                    "gradient with a graph",
                    "product",
                    f"graph of {SHARE:.0%} of the batch",
                    "product with it",
                ),
                *("least, along the gradient", "least, the three"),
            ],
            pieces,
        ),
        f"**Gauss-Newton trace** by one random gradient: relative standard deviation over {options.draws} draws, and what a draw "
        f"adds to the step in forward+backwards, before training and after {options.steps // 2} steps. Targets: "
        f"{TRACE_TARGET:.0%} and 1. The pass goes no further than the modules' outputs: the gradients of the parameters, a third "
        "to a half of a backward pass, are made only the first times, as a check. In a text model all tokens of a sample meet in "
        "one squared norm; what their random numbers add up to by chance is known, and taken out (of the trained transformer "
        "that leaves 2.5% of 6%). Where every sample has one prediction and the network is not as small as this MLP, the signs "
        "are taken along directions in which the last layer, with the units that are active in a sample, does not mix them: on "
        "the trained 3C3D that leaves 3.6% of 9%, on the LSTM 23% of 40% (from the exact kernels of all samples, as what "
        "follows). Nothing is remembered for it: the exact mean of JJ' over the batches of all earlier tracked steps, which a "
        "fit to their draws could at best find, leaves 6% and 20%, that over the very batch 3.3% and 13%. What is left on the "
        "LSTM is one sample that carries 36% of the trace and whose JJ' is nearly of rank one, in a direction that its last "
        "layer does not show: with a second draw of opposite signs, at another half of a forward+backward, 15% would be left; "
        "an exact treatment of samples chosen by the loss's second derivative changes little, since no sample has more than 6% "
        "of that.",
        table(["training", "deviation", "cost", "deviation, trained", "cost"], traces),
        "**Spectral density** against the dense spectrum: Wasserstein distance over the width of the spectrum.",
        table(["net", "parameters", "steps", "random vectors", "distance"], densities()),
        f"**Growth** with the number of parameters, batch {GROWTH_BATCH}: the largest eigenvalue from a cold start in at most "
        f"{GROWTH_PRODUCTS} products, with the estimated error that is left; memory of the process at its peak, the net, its "
        "gradient and both graphs included.",
        table(["parameters", "plain", "products", "forward+backwards", "vectors that fit", "memory", "error"], grown),
        "Missed: " + "; ".join(misses) + "." if misses else "All targets are met.",
    ]
    publish("curvature", "Curvature", "\n\n".join(sections), options.print_only)


if __name__ == "__main__":
    main()
