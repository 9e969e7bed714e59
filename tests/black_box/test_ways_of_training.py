"""The black box under accumulation, a closure, a gradient scaler, several optimizers, and inputs of every shape."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from cockpit_lite.black_box import calls, kept_steps, load_step, replay
from cockpit_lite.errors import ReplayError
from cockpit_lite.preflight import QuietCockpit
from tests.black_box.nets import classifier


def watch(model: nn.Module, optimizer: torch.optim.Optimizer, run: Path) -> QuietCockpit:
    return QuietCockpit(model, optimizer, run=run, instruments="light", budget=None)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_the_micro_batch_that_was_bad_is_kept(tmp_path: Path) -> None:
    model = classifier("Tanh")
    optimizer = sgd(model)
    batches = torch.randn(6, 8, 4)
    batches[4, 3, 1] = math.inf
    with watch(model, optimizer, tmp_path / "run"):
        for number, inputs in enumerate(batches):
            (model(inputs).square().mean() / 3).backward()
            if number % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
    kept = load_step(tmp_path / "run")
    assert kept.step == 1 and torch.equal(kept.calls[0]["args"][0], batches[4])
    found = replay(kept, classifier("Tanh"))
    assert (found.kind, found.place) == ("batch", (3, 1))


def test_short_steps_are_looked_at_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that costs is bounded; a bad loss is still kept with its batch and the weights before it."""
    monkeypatch.setattr(calls, "_SHARE", 1e-9)  # only the first step
    model = classifier("Tanh")
    optimizer = sgd(model)
    batches = 0.1 + torch.rand(4, 8, 4)
    weights = []
    with watch(model, optimizer, tmp_path / "run"):
        for number, inputs in enumerate(batches):
            weights.append([parameter.detach().clone() for parameter in model.parameters()])
            optimizer.zero_grad()
            (model(inputs).square().mean() * (math.nan if number == 2 else 1e-6)).backward()
            optimizer.step()
    kept = load_step(tmp_path / "run")
    assert kept.step == 2
    assert torch.equal(kept.calls[0]["args"][0], batches[2])
    assert all(torch.equal(there, then) for there, then in zip(kept.weights.values(), weights[2], strict=True))
    assert any("only some are looked at closely" in note for note in kept.notes)
    assert replay(kept, classifier("Tanh")).kind != "nothing"


def test_a_closure(tmp_path: Path) -> None:
    model = classifier("Logarithm")
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(8, 4)).square().mean()
        loss.backward()
        return loss

    with watch(model, optimizer, tmp_path / "run"):
        optimizer.step(closure)
    assert replay(load_step(tmp_path / "run"), classifier("Logarithm")).operation == "log"


def test_steps_that_a_gradient_scaler_skips_are_no_faults(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with watch(model, optimizer, tmp_path / "run"):
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.full((8, 4), 1e4)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
    assert not kept_steps(tmp_path / "run")


def test_validation_and_another_model_are_not_mistaken_for_the_step(tmp_path: Path) -> None:
    model, other = classifier("Root"), nn.Linear(4, 1)
    optimizer = sgd(model)
    inputs = torch.randn(8, 4)
    with watch(model, optimizer, tmp_path / "run"):
        loss = model(inputs).square().mean()
        with torch.no_grad():
            model(torch.zeros(2, 4))
        model(torch.ones(2, 4))  # with gradients, and never trained on
        other(torch.full((3, 4), math.nan)).sum().backward()  # somebody else's fault
        assert not kept_steps(tmp_path / "run")
        loss.backward()
        optimizer.step()
    kept = load_step(tmp_path / "run")
    assert len(kept.calls) == 1 and torch.equal(kept.calls[0]["args"][0], inputs)


class Reader(nn.Module):
    """Takes a packed sequence, options, and a list of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 5)

    def forward(self, sequence: PackedSequence, extra: list[Tensor], *, options: dict[str, Any]) -> Tensor:
        output = self.layer(sequence)[0].data
        return (output * options["factor"] + extra[0].sum()).sqrt()


def test_inputs_of_many_kinds_come_back(tmp_path: Path) -> None:
    model = Reader()
    sequence = pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    with watch(model, sgd(model), tmp_path / "run"):
        model(sequence, [torch.zeros(2)], options={"factor": 1.5, "name": "x", "none": None}).sum().backward()
    kept = load_step(tmp_path / "run")
    found = replay(kept, Reader())
    assert (found.operation, found.output["nan"] > 0) == ("sqrt", True)


def test_an_input_that_no_file_can_hold_is_named(tmp_path: Path) -> None:
    class Graph:
        def __init__(self) -> None:
            self.nodes = torch.zeros(3, 4)

    class OfGraph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, graph: Graph) -> Tensor:
            return self.layer(graph.nodes).log()

    model = OfGraph()
    with watch(model, sgd(model), tmp_path / "run"):
        (model(Graph()).sum() * 0 / 0).backward()
    with pytest.raises(ReplayError, match=r"a Graph \(args\[0\]\)"):
        replay(load_step(tmp_path / "run"), OfGraph())


def test_autocast_is_repeated(tmp_path: Path) -> None:
    model = classifier("Overflow").float()
    optimizer = sgd(model)
    with watch(model, optimizer, tmp_path / "run"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(torch.randn(8, 4)), torch.arange(8) % 3)
        loss.backward()
    kept = load_step(tmp_path / "run")
    assert kept.calls[0]["autocast"] == {"cpu": "bfloat16"}
    assert replay(kept, classifier("Overflow")).module == "between.wide"


def test_a_view_does_not_take_the_whole_data_along(tmp_path: Path) -> None:
    data = torch.zeros(100_000, 4)
    model = classifier("Logarithm")
    with watch(model, sgd(model), tmp_path / "run"):
        model(data[:8]).sum().backward()
    (file,) = kept_steps(tmp_path / "run")
    assert file.stat().st_size < 100_000


def test_a_compiled_model_is_kept_too(tmp_path: Path) -> None:
    net = classifier("Logarithm")
    model = torch.compile(net, backend="eager")
    optimizer = sgd(net)
    with watch(model, optimizer, tmp_path / "run"):
        for _ in range(2):
            model(torch.zeros(8, 4)).sum().backward()
            optimizer.step()
    kept = load_step(tmp_path / "run")
    assert replay(kept, classifier("Logarithm")).operation == "log"  # under the names of the bare model


def test_a_full_disk_is_said_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    model = classifier("Logarithm")
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="could not be kept") as caught, watch(model, optimizer, tmp_path / "run"):
        for _ in range(3):
            model(torch.zeros(8, 4)).sum().backward()
            optimizer.step()
    assert len([warning for warning in caught if "could not be kept" in str(warning.message)]) == 1
