"""A step that goes wrong is kept as it happens, and run again it names the operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite import Every
from cockpit_lite.black_box import Verdict, kept_steps, load_step, replay
from cockpit_lite.errors import NotAKeptStepError, ReplayError
from cockpit_lite.preflight import QuietCockpit
from tests.black_box.nets import Attention, classifier, loss_of_log

Batch = Callable[[int], tuple[Any, Tensor]]


def batch(step: int) -> tuple[Tensor, Tensor]:
    return torch.randn(16, 4), torch.randint(3, (16,))


def train(
    model: nn.Module,
    run: Path,
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    batches: Batch = batch,
    steps: int = 3,
    measured: bool = False,
    **options: Any,
) -> QuietCockpit:
    """Train with hardly anything measured, or everything of the light preset."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = Every(1) if measured else (lambda step: False)
    with QuietCockpit(model, optimizer, run=run, instruments="light", schedule=schedule, budget=None, **options) as cockpit:
        for step in range(steps):
            inputs, targets = batches(step)
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    return cockpit


def verdict(model: nn.Module, fresh: nn.Module, run: Path, **options: Any) -> Verdict:
    train(model, run, **options)
    return replay(load_step(run), fresh)


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize(
    ("between", "kind", "operation", "module"),
    [
        ("Logarithm", "forward", "log", "between"),
        ("Ratio", "forward", "div", "between"),
        ("Overflow", "forward", "addmm", "between.wide"),
        ("Root", "backward", "SqrtBackward0", "between"),
    ],
)
def test_the_operation_is_named(between: str, kind: str, operation: str, module: str, measured: bool, tmp_path: Path) -> None:
    found = verdict(classifier(between), classifier(between), tmp_path / "run", measured=measured)
    assert (found.kind, found.operation, found.module, found.step) == (kind, operation, module, 0)
    assert found.source.startswith("nets.py:") and found.source.endswith("in forward")
    assert sum(about["nan"] + about["infinite"] for about in found.inputs) == 0 and found.output["nan"] + found.output["infinite"]
    assert found.notes == ()


def test_a_loss_that_takes_the_logarithm_of_zero(tmp_path: Path) -> None:
    model = classifier("Tanh")
    with torch.no_grad():
        model.last.bias[0] = 200.0
    run = tmp_path / "run"
    train(model, run, loss=loss_of_log)
    kept = load_step(run)
    without = replay(kept, classifier("Tanh"))
    assert (without.kind, without.operation, without.module) == ("loss", "log", "the loss function")
    with_loss = replay(kept, classifier("Tanh"), loss_of_log)
    assert (with_loss.kind, with_loss.operation) == ("loss", "log") and "nets.py" in with_loss.source
    assert with_loss.loss == (math.inf, math.inf)


def test_a_loss_whose_derivative_alone_is_bad(tmp_path: Path) -> None:
    found = verdict(
        classifier("Tanh"),
        classifier("Tanh"),
        tmp_path / "run",
        loss=lambda output, _: (output - output.detach()).norm(dim=1).pow(0.5).sum(),
    )
    assert found.kind == "loss backward" and "pow" in found.cause and math.isfinite(found.loss[0] or 0)


def test_a_batch_that_holds_a_nan(tmp_path: Path) -> None:
    def spoilt(step: int) -> tuple[Tensor, Tensor]:
        inputs, targets = batch(step)
        if step == 1:
            inputs[5, 2] = math.nan
        return inputs, targets

    found = verdict(classifier("Tanh"), classifier("Tanh"), tmp_path / "run", batches=spoilt)
    assert (found.kind, found.step, found.where, found.place) == ("batch", 1, ("input[0]",), (5, 2))


def test_weights_that_were_bad_before(tmp_path: Path) -> None:
    model = classifier("Tanh")
    with torch.no_grad():
        model.last.weight[1, 2] = math.nan
    found = verdict(model, classifier("Tanh"), tmp_path / "run")
    assert (found.kind, found.where, found.place) == ("weights", ("last.weight",), (1, 2))


def test_a_mask_is_no_fault_and_one_that_leaves_nothing_is(tmp_path: Path) -> None:
    def tokens(step: int) -> tuple[Tensor, Tensor]:
        return torch.randint(11, (4, 6)), torch.randint(11, (4, 6))

    def loss(output: dict[str, Tensor], targets: Tensor) -> Tensor:
        return F.cross_entropy(output["logits"].flatten(0, 1), targets.flatten())

    assert not kept_steps(train(Attention(), tmp_path / "healthy", loss, tokens).folder)
    found = verdict(Attention(True), Attention(True), tmp_path / "run", loss=loss, batches=tokens)
    assert (found.kind, found.operation, found.module) == ("forward", "softmax", "Attention")
    assert found.spread == ("norm", "head", "Attention")


def test_a_kept_step_is_the_step_bit_for_bit(tmp_path: Path) -> None:
    model = classifier("Tanh")
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with QuietCockpit(model, optimizer, run=tmp_path / "run", instruments="standard", schedule=Every(1), budget=None) as cockpit:
        for step in range(4):
            inputs, targets = batch(step)
            optimizer.zero_grad()
            if step == 2:
                cockpit.keep_step()
                inputs_then, targets_then = inputs, targets
                before = {name: value.clone() for name, value in model.state_dict().items()}
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if step == 2:
                value = loss.item()
                gradient = model.first.weight.grad.clone()
    kept = load_step(tmp_path / "run")
    assert (kept.step, kept.reason, kept.loss) == (2, "it was asked for", value)
    assert all(torch.equal(value, before[name]) for name, value in {**(kept.weights or {}), **kept.buffers}.items())
    assert kept.target is not None and torch.equal(kept.target["target"], targets_then)
    assert torch.equal(kept.calls[0]["args"][0], inputs_then)
    assert kept.optimizers[0]["groups"][0]["momentum"] == 0.9
    again = classifier("Tanh")
    found = replay(kept, again, F.cross_entropy)
    assert found.kind == "nothing" and found.loss == (value, value)
    assert torch.equal(again.first.weight.grad, gradient)  # dropout and batch statistics included


def test_only_the_first_of_many_bad_steps_is_kept(tmp_path: Path) -> None:
    cockpit = train(classifier("Logarithm"), tmp_path / "run", steps=5)
    assert [path.name for path in kept_steps(cockpit.folder)] == ["step-000000.pt"]


def test_a_limit_leaves_out_what_does_not_fit_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the weights were not kept"):
        train(classifier("Logarithm"), tmp_path / "small", black_box=700)
    kept = load_step(tmp_path / "small")
    assert kept.weights is None and kept.calls and "the weights were left out" in kept.notes[-1]
    assert replay(kept, classifier("Logarithm")).operation == "log"  # with the weights of a new model
    train(classifier("Logarithm"), tmp_path / "none", black_box=False)
    with pytest.raises(NotAKeptStepError, match="has kept no step"):
        load_step(tmp_path / "none")


def test_another_model_is_told_apart(tmp_path: Path) -> None:
    train(classifier("Root"), tmp_path / "run")
    with pytest.raises(ReplayError, match="is not the one that was trained"):
        replay(load_step(tmp_path / "run"), nn.Linear(4, 3))


def test_the_class_of_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    original = nn.Sequential.__call__
    train(model, tmp_path / "run")
    assert nn.Sequential.__call__ is original and "__call__" not in vars(nn.Sequential)
