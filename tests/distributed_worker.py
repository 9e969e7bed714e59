"""What every process of the tests of distributed training runs: data-parallel loops, each once as it is and once watched.

Started by ``torchrun``; writes the runs and the weights of the first process into a folder.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cockpit_lite import Cockpit, Every

STEPS = 4


class Heads(nn.Module):
    """Two heads, of which the second is used on every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        hidden = self.trunk(x).tanh()
        return self.first(hidden) + self.second(hidden) if both else self.first(hidden)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


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


def unused(model: Model, own: Callable[[Tensor], Tensor], step: int) -> None:
    x, y = data(step)
    cross_entropy(model(own(x), step % 2 == 0), own(y)).backward()


#: name -> model, one step, settings of DistributedDataParallel, whether the parts are uneven
SCENARIOS: dict[str, tuple[Callable[[], nn.Module], Callable[..., None], dict[str, bool], bool]] = {
    "usual": (network, usual, {}, False),
    "uneven": (network, usual, {}, True),
    "accumulated": (network, accumulated, {}, False),
    "unused": (lambda: (torch.manual_seed(1), Heads())[1], unused, {"find_unused_parameters": True}, False),
    "views": (network, usual, {"gradient_as_bucket_view": True}, False),
}


def train(name: str, cockpit: Callable[..., contextlib.AbstractContextManager[object]], processes: int, rank: int) -> nn.Module:
    make, loop, settings, uneven = SCENARIOS[name]
    model = make()
    wrapped = DistributedDataParallel(model, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with cockpit(wrapped, optimizer):
        for step in range(STEPS):
            optimizer.zero_grad()
            loop(wrapped, lambda values: parts(values, processes, uneven)[rank], step)
            optimizer.step()
    return model


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, processes = distributed.get_rank(), distributed.get_world_size()
    for name in SCENARIOS:

        def watched(model: nn.Module, optimizer: torch.optim.Optimizer, name: str = name) -> Cockpit:
            group = distributed.group.WORLD
            return Cockpit(model, optimizer, run=folder / name, schedule=Every(1), process_group=group)

        plain = train(name, lambda model, optimizer: contextlib.nullcontext(), processes, rank)
        with contextlib.redirect_stdout(io.StringIO()):
            seen = train(name, watched, processes, rank)
        same = all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), seen.state_dict().values(), strict=True))
        (folder / f"{name}-{rank}.txt").write_text("same" if same else "different")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
