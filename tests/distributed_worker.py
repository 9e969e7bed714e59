"""What every process of the tests of distributed training runs: loops, each once as it is and once watched.

``python -m tests.distributed_worker FOLDER PROCESSES NAME...`` starts the processes, as ``torchrun`` does, by a fork of one that
has imported everything; it writes the runs, and what each process has to say, into the folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from cockpit_lite import Cockpit, Every, Instrument
from cockpit_lite.instruments import HessianTrace, LayerwiseCurvature, MaxEigenvalue, SpectralDensity
from cockpit_lite.observer import Observer

STEPS = 4


class Heads(nn.Module):
    """Two heads, of which the second is used on every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        hidden = self.trunk(x).tanh()
        return self.first(hidden) + self.second(hidden) if both else self.first(hidden)


def heads() -> nn.Module:
    torch.manual_seed(1)
    return Heads()


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def smooth() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Tokens(nn.Module):
    """What language models are made of, small: a table of tokens, one of positions, attention, normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(5, 8), nn.Embedding(6, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        at = torch.arange(x.shape[1]).expand(x.shape[:2])
        hidden = self.tokens((x + 2).clamp(0, 4).long()) + self.positions(at)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden)).mean(1)


def tokens() -> nn.Module:
    torch.manual_seed(1)
    return Tokens()


def data(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(size, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def parts(values: Tensor, processes: int, uneven: bool) -> list[Tensor]:
    """Cut a batch into the parts of the processes."""
    sizes = [len(values) // processes] * processes
    if uneven:
        sizes[0], sizes[-1] = sizes[0] + 2, sizes[-1] - 2
    return list(values.split(sizes))


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, labels)


Model = Callable[..., Tensor]


def usual(model: Model, own: Callable[[Tensor], Tensor], step: int) -> None:
    x, y = data(step)
    cross_entropy(model(own(x)), own(y)).backward()


def accumulated(model: Model, own: Callable[[Tensor], Tensor], step: int) -> None:
    for part in range(2):
        x, y = data(10 * step + part)
        waits = getattr(model, "no_sync", contextlib.nullcontext) if part == 0 else contextlib.nullcontext
        with waits():
            (cross_entropy(model(own(x)), own(y)) / 2).backward()


def accumulated_in_shards(model: Any, own: Callable[[Tensor], Tensor], step: int) -> None:
    """The first part of the gradient stays with its process, the second goes to the others along with it."""
    for part in range(2):
        x, y = data(10 * step + part)
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(part == 1)
        (cross_entropy(model(own(x)), own(y)) / 2).backward()


def unused(model: Model, own: Callable[[Tensor], Tensor], step: int) -> None:
    x, y = data(step)
    cross_entropy(model(own(x), step % 2 == 0), own(y)).backward()


def clipped(model: Any, own: Callable[[Tensor], Tensor], step: int) -> None:
    usual(model, own, step)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


# How the model is spread over the processes


def in_copies(model: nn.Module, processes: int) -> nn.Module:
    return DistributedDataParallel(model)


def unused_allowed(model: nn.Module, processes: int) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=True)


def as_views(model: nn.Module, processes: int) -> nn.Module:
    return DistributedDataParallel(model, gradient_as_bucket_view=True)


def with_static_graph(model: nn.Module, processes: int) -> nn.Module:
    return DistributedDataParallel(model, static_graph=True)


def not_at_all(model: nn.Module, processes: int) -> nn.Module:
    """A mistake: each trains for itself."""
    return model


def in_shards(model: nn.Module, processes: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (processes,))
    for layer in model.children():
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_blocks(model: Any, processes: int) -> nn.Module:
    """Four processes: two halves, each with all of it."""
    mesh = (
        init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "shards")) if processes == 4 else init_device_mesh("cpu", (2,))
    )
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def in_columns(model: nn.Module, processes: int) -> nn.Module:
    mesh = init_device_mesh("cpu", (processes,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


#: name -> model, one step, how it is spread, whether the parts of the batch are uneven, None: all have all of it
SCENARIOS: dict[str, tuple[Callable[[], nn.Module], Callable[..., None], Callable[[nn.Module, int], nn.Module], bool | None]] = {
    "usual": (network, usual, in_copies, False),
    "uneven": (network, usual, in_copies, True),
    "accumulated": (network, accumulated, in_copies, False),
    "unused": (heads, unused, unused_allowed, False),
    "views": (network, usual, as_views, False),
    "sharded": (network, clipped, in_shards, False),
    "sharded blocks": (tokens, usual, in_blocks, False),
    "sharded, accumulated": (network, accumulated_in_shards, in_shards, False),
    "tensor-parallel": (network, usual, in_columns, None),
    "apart": (network, usual, not_at_all, False),
    "static": (network, usual, with_static_graph, False),
    "curved": (smooth, usual, in_copies, True),
}


#: What follows from the norms of samples alone.
OF_NORMS = ("norm_test", "gradient_noise_scale", "cabs", "gradient_alignment", "hardest_samples")
#: Where parameters are whole while a module is called, and in parts else.
BY_FSDP = tuple(name for name, (_, _, spread, _) in SCENARIOS.items() if spread in (in_shards, in_blocks))

#: Whose products are with random vectors that are the same everywhere, ...
OF_PRODUCTS = ("max_eigenvalue", "min_eigenvalue", "eigenvector_overlap", "sharpness_limit")
#: ... and which draw other numbers for the samples of each process.
SAMPLED = ("ggn_trace", "tic_diag")


def instruments(name: str, sampled: Sequence[str] = SAMPLED) -> list[str | Instrument]:
    """Return what measures in a scenario."""
    if name in BY_FSDP and name != "sharded":
        return ["light", *OF_NORMS]
    if name != "curved":
        return ["full" if name == "sharded" else "standard"]
    layers = LayerwiseCurvature(eigenvalues=3, sub_batch=None)
    return ["standard", *OF_PRODUCTS, HessianTrace(2, sub_batch=None), SpectralDensity(sub_batch=None), layers, *sampled]


class Fails(Instrument):
    """Fails on the second process from step 2 on."""

    name = "fails"
    needs = ("per_sample_squares",)

    def measure(self, step: Any) -> dict[str, float]:
        if step.index >= 2 and distributed.get_rank() == 1:
            raise RuntimeError("mine")
        return {"fails": float(step.per_sample.batch_size)}


class FailsHalfway(Instrument):
    """Fails on the second process at step 1, when the others want a product."""

    name = "fails_halfway"
    needs = ("curvature",)

    def measure(self, step: Any) -> dict[str, Tensor]:
        vector = torch.ones_like(step.curvature.flat_gradient())  # which nobody else multiplies with
        if step.index == 1 and distributed.get_rank() == 1:
            raise RuntimeError("mine")
        return {"fails_halfway": step.curvature.product(vector).norm()}


class FailsBetween(Instrument):
    """Looks at two steps in a row, and fails on the second process at the first."""

    name = "fails_between"
    needs = ("last_step",)

    def measure(self, step: Any) -> dict[str, float]:
        if distributed.get_rank() == 1:
            raise RuntimeError("mine")
        return {"fails_between": 1.0}


class OwnError(Exception):
    """Of the training itself."""


def instrument_fails(step: int) -> None:
    """Nothing else: the instrument does."""


def cockpit_fails(step: int) -> None:
    if step == 2 and distributed.get_rank() == 1:

        def broken(self: Observer, *_: Any) -> None:
            Observer.before_update = whole  # type: ignore[method-assign]
            raise RuntimeError("ours")

        whole, Observer.before_update = Observer.before_update, broken  # type: ignore[method-assign]


def training_fails(step: int) -> None:
    if step == 2 and distributed.get_rank() == 1:
        raise OwnError


def is_killed(step: int) -> None:
    if step == 2 and distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


#: name -> what happens at the beginning of a step
FAILURES: dict[str, Callable[[int], None]] = {
    "instrument fails": instrument_fails,
    "curvature fails": instrument_fails,
    "fails between": instrument_fails,
    "cockpit fails": cockpit_fails,
    "training fails": training_fails,
    "is killed": is_killed,
}


#: name -> what measures there beside the usual, where it is not only :class:`Fails`
FAILING: dict[str, tuple[Instrument, ...]] = {"curvature fails": (FailsHalfway(), MaxEigenvalue())}


def train(
    name: str,
    cockpit: Callable[..., contextlib.AbstractContextManager[object]],
    processes: int,
    rank: int,
    happens: Callable[[int], None] = instrument_fails,
) -> nn.Module:
    make, loop, spread, uneven = SCENARIOS[name]
    wrapped = spread(make(), processes)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)

    def own(values: Tensor) -> Tensor:
        return values if uneven is None else parts(values, processes, uneven)[rank]

    with cockpit(wrapped, optimizer):
        for step in range(STEPS):
            optimizer.zero_grad()
            happens(step)
            loop(wrapped, own, step)
            optimizer.step()
    return getattr(wrapped, "module", wrapped)


def same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(*(getattr(value, "to_local", lambda value=value: value)() for value in pair)) for pair in pairs)


def watch(name: str, folder: Path, rank: int, processes: int) -> dict[str, object]:
    """Train twice, once watched; return what there is to say."""
    scenario, happens = (name, instrument_fails) if name in SCENARIOS else ("usual", FAILURES[name])

    def watched(model: nn.Module, optimizer: torch.optim.Optimizer) -> Cockpit:
        measuring = [*instruments(scenario), *FAILING.get(name, () if name in SCENARIOS else (Fails(),))]
        if name == "fails between":
            measuring = ["norm_test", FailsBetween()]
        schedule = Every(2) if name == "fails between" else Every(1)
        group, own = distributed.group.WORLD, folder / name
        return Cockpit(model, optimizer, run=own, schedule=schedule, process_group=group, instruments=measuring)

    plain = train(scenario, lambda model, optimizer: contextlib.nullcontext(), processes, rank)
    error, alike = "", False
    with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("always")
        try:
            alike = same(plain, train(scenario, watched, processes, rank, happens))
        except Exception as raised:  # of the training, which has lost a process
            error = type(raised).__name__
    told = [str(warning.message) for warning in caught if warning.category.__name__ == "CockpitWarning"]
    return {"same": alike, "error": error, "warnings": told}


def run(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    report = Cockpit._write_results
    for name in names:
        # One report is enough to see that there is one; it takes longer than the training.
        Cockpit._write_results = report if name == "usual" else lambda self: None  # type: ignore[method-assign]
        told = watch(name, folder, rank, processes)
        (folder / f"{name}-{rank}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()


def start(folder: Path, processes: int, names: list[str]) -> list[int]:
    """Run so many processes to their end; return how each ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(processes))
        try:
            run(folder, names)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main() -> None:
    folder, processes, *names = sys.argv[1:]
    if "RANK" in os.environ:  # torchrun has started the processes
        run(Path(folder), names)
        return
    ends = ("training fails", "is killed")  # the processes do not survive them
    ended = start(Path(folder), int(processes), [name for name in names if name not in ends])
    for name in ends:
        ended += start(Path(folder), int(processes), [name]) if name in names else []
    (Path(folder) / "ended.json").write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
