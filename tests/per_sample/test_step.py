"""What an instrument finds under step.per_sample_gradients, in a real loop."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import Every, load_run
from cockpit_lite.instrument import PER_SAMPLE_GRADIENTS, UPDATE, Instrument, Readings
from cockpit_lite.probes.per_sample import LayerGradients
from cockpit_lite.probes.per_sample.calls import Call
from cockpit_lite.probes.per_sample.kernels import Kernel
from cockpit_lite.probes.per_sample.projections import Projection
from cockpit_lite.step import Step
from tests.identity import assert_identical, cockpit


class Sums(Instrument):
    """Writes the sum of every parameter's contributions, element by element, and the gradient beside it."""

    name = "sums"
    needs = (PER_SAMPLE_GRADIENTS,)

    def measure(self, step: Step) -> Readings:
        found: dict[str, Tensor] = {}
        for name, layer in step.per_sample_gradients:
            assert isinstance(layer, LayerGradients)
            found[f"sums/{name}"] = torch.cat(list(layer.gradients())).sum(0).flatten()
            found[f"gradient/{name}"] = step.gradient[name].flatten()
        return found


class TooLate(Sums):
    """Asks for the update, too, and so measures after it."""

    needs = (PER_SAMPLE_GRADIENTS, UPDATE)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 2))


def check_sums(folder: Path) -> None:
    run = load_run(folder)
    for name in run.layers("sums"):
        torch.testing.assert_close(
            torch.tensor(run.series(f"sums/{name}")[1]), torch.tensor(run.series(f"gradient/{name}")[1]), rtol=1e-4, atol=1e-6
        )
    assert sorted(run.layers("sums")) == ["0.bias", "0.weight", "3.bias", "3.weight"]


@pytest.mark.parametrize("parts", [1, 3])
def test_contributions_sum_to_the_gradient(parts: int, tmp_path: Path) -> None:
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    with cockpit(net, optimizer, run=tmp_path / "run", instruments=[Sums()], schedule=Every(1), budget=None):
        for _ in range(2):
            optimizer.zero_grad()
            for inputs in torch.randn(6, 1, 8).chunk(parts):
                net(inputs).square().mean().backward()
            optimizer.step()
    check_sums(tmp_path / "run")


def test_the_scale_of_a_gradient_scaler_is_taken_out(tmp_path: Path) -> None:
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with cockpit(net, optimizer, run=tmp_path / "run", instruments=[Sums()], schedule=Every(1), budget=None):
        scaler.scale(net(torch.randn(6, 1, 8)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    check_sums(tmp_path / "run")


def test_after_the_update_they_are_gone(tmp_path: Path) -> None:
    net = model()
    optimizer = SGD(net.parameters(), lr=0.1)
    with cockpit(net, optimizer, run=tmp_path / "run", instruments=[TooLate()], schedule=Every(1), budget=None):
        net(torch.randn(6, 1, 8)).square().mean().backward()
        optimizer.step()
    assert "weights have changed" in load_run(tmp_path / "run").not_measured["sums"]


def test_what_keeps_the_engine_away_is_the_reason(tmp_path: Path) -> None:
    net = model()
    net[3].register_full_backward_hook(lambda *_: None)
    optimizer = SGD(net.parameters(), lr=0.1)
    with cockpit(net, optimizer, run=tmp_path / "run", instruments=[Sums()], schedule=Every(1), budget=None):
        net(torch.randn(6, 1, 8)).square().mean().backward()
        optimizer.step()
    assert "backward hook" in load_run(tmp_path / "run").not_measured["sums"]


def test_going_through_the_layers_changes_nothing(tmp_path: Path) -> None:
    def train(watch):  # type: ignore[no-untyped-def]
        net = nn.Sequential(model(), nn.Dropout(0.3))
        optimizer = SGD(net.parameters(), lr=0.1)
        with watch(net, optimizer):
            for _ in range(3):
                optimizer.zero_grad()
                net(torch.randn(6, 1, 8)).square().mean().backward()
                optimizer.step()

    run = assert_identical(train, tmp_path / "run", {"instruments": [Sums()], "schedule": Every(1), "budget": None})
    assert len(run.layers("sums")) == 4


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x, need_weights=False)
        return self.head(attended)


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0])


@pytest.mark.parametrize(("build", "things"), [(Attends, (Call, Projection)), (Recurs, (Call, Kernel))])
def test_nothing_is_held_by_the_graph_of_a_loss_that_the_user_still_has(
    build: type[nn.Module], things: tuple[type, type], tmp_path: Path
) -> None:
    """Its hooks know the calls, and a loop keeps its last loss until the next one is there."""
    net = build()
    optimizer = SGD(net.parameters(), lr=0.1)
    with cockpit(net, optimizer, run=tmp_path / "run", instruments=[Sums()], schedule=Every(1), budget=None):
        optimizer.zero_grad()
        loss = net(torch.randn(4, 5, 8)).square().mean()
        loss.backward()
        optimizer.step()
        kept = [thing for thing in gc.get_objects() if type(thing) in things]
        assert {type(thing) for thing in kept} == set(things)  # the graph is there
        assert len(kept) >= 4
        for thing in kept:
            held = [value for value in vars(thing).values() if isinstance(value, Tensor)]
            if type(thing) is Call:
                held = [*thing.inputs, *(delta for delta in thing.deltas if delta is not None), *held]
            assert not any(tensor.numel() for tensor in held)
    assert loss.grad_fn is not None
    assert load_run(tmp_path / "run").layers("sums")
