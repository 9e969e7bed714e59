"""Sharded parameters, in a world of one process: what is measured, what is not, and why. In several: test_distributed.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from cockpit_lite import Cockpit, Every, load_run
from cockpit_lite.probes.per_sample.checks import along_direction, check_direction, part_of_direction
from cockpit_lite.run import Run
from cockpit_lite.sharded import held, unsharded_class, whole_in_calls

if not distributed.is_available() or not distributed.is_gloo_available():
    pytest.skip("needs gloo", allow_module_level=True)


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


WORLD = "of all processes"  # there is none yet


class Net(nn.Module):
    """Something to be used in several ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class Elsewhere(Net):
    """Uses a weight outside of its module's call, too."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden.relu()) + (x @ self.first.weight.t()).sum(1, keepdim=True)


class Bare(Net):
    """Has a parameter of its own, for which there is no rule."""

    def forward(self, x: Tensor) -> Tensor:
        return self.second((self.first(x) * self.scale).relu())


class Flat(Net):
    """Gives a layer two rows a sample."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.first(torch.cat([x, -x], 1).reshape(-1, 6)).relu()
        return self.second(rows).reshape(len(x), -1) + 0  # no view, of which FSDP warns


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def trained(model: nn.Module, folder: Path, samples: int = 10, group: Any = WORLD) -> Run:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    group = distributed.group.WORLD if group is WORLD else group
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cockpit, "_write_results", lambda self: None)
        with Cockpit(
            model, optimizer, run=folder, schedule=Every(1), budget=None, process_group=group, instruments=["norm_test"]
        ):
            for step in range(2):
                optimizer.zero_grad()
                x = torch.randn(samples, 6, generator=torch.Generator().manual_seed(step))
                model(x).square().mean().backward()
                optimizer.step()
    return load_run(folder)


def test_norms_are_those_of_whole_parameters(tmp_path: Path) -> None:
    alone, together = (trained(make(Net()), tmp_path / name) for name, make in (("alone", lambda net: net), ("shards", sharded)))
    assert together.series("norm_test")[1] == pytest.approx(alone.series("norm_test")[1], rel=1e-5)
    assert len(together.series("norm_test")[1]) == 2
    assert together.info["model"]["class"] == "Net"


@pytest.mark.parametrize(
    ("make", "samples", "reason"),
    [
        (
            Elsewhere,
            10,
            "first.weight are not covered: the gradient is not the mean of what the samples of the processes contribute",
        ),
        (Bare, 10, "scale are not covered: Bare has no rule"),
        (Flat, 10, "several rows a sample, and sharded parameters leave only the shapes"),
        (Net, 6, "another axis of the model's input is as long as the batch"),
    ],
)
def test_what_cannot_be_told_is_named(make: Callable[[], nn.Module], samples: int, reason: str, tmp_path: Path) -> None:
    run = trained(sharded(make()), tmp_path / "run", samples)
    assert "norm_test" not in run.names
    assert reason in run.not_measured["norm_test"]


def test_who_averages_gradients_and_does_not_say_so_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)

    def average(parameter: Tensor) -> None:  # with a process that has a gradient of zero
        assert parameter.grad is not None
        parameter.grad /= 2

    model = Net()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(average)
    run = trained(model, tmp_path / "run", group=None)
    assert "averaged over processes that do not measure together (hand over process_group=)" in run.not_measured["norm_test"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_parts_of_a_direction_make_up_the_whole(axis: int) -> None:
    gradient = torch.randn(5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction, found = check_direction(gradient), []
    for first, number in ((0, 2), (2, 1), (3, gradient.shape[axis] - 3)):
        piece = part_of_direction(direction, gradient.shape, axis, first, number)
        found.append(along_direction(gradient.narrow(axis, first, number), piece))
    wanted = (gradient * torch.outer(direction.left, direction.right).reshape(gradient.shape)).sum()
    torch.testing.assert_close(torch.stack(found).sum(), wanted)


def test_fully_sharded_modules_are_told_from_others() -> None:
    plain, cut = nn.Linear(3, 2), sharded(nn.Linear(3, 2))
    assert type(cut) is not nn.Linear
    assert [unsharded_class(module) for module in (plain, cut)] == [nn.Linear, nn.Linear]
    weights: Any = cut.weight
    assert held(weights) == (0, 0, 2)
    assert held(plain.weight) is None
    assert whole_in_calls(cut, cut.parameters(), 1)
    assert not whole_in_calls(cut, cut.parameters(), 2)  # a part of the processes holds all of it: there are others
    assert not whole_in_calls(plain, plain.parameters(), 1)
