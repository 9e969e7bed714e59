"""What an accelerator does for the black box, tried on a CPU by hand, and on a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cockpit_lite.black_box import load_step, replay
from cockpit_lite.black_box.calls import Call
from cockpit_lite.black_box.latch import MOST_IN_FLIGHT, Latch
from tests.black_box.nets import classifier
from tests.black_box.test_replay import train


def test_the_weights_of_the_first_bad_step_are_held() -> None:
    parameters = {"a": torch.zeros(3), "b": torch.zeros(2, 2), "half": torch.zeros(2, dtype=torch.float16)}
    latch = Latch(parameters, 10**6)
    for step in range(6):
        for value in parameters.values():
            value.fill_(step)
        latch.note(step, (), torch.tensor(float("nan") if step in (2, 3) else 1.0), [torch.ones(2)])
    assert [(pending.step, bad) for pending, bad in latch.arrived()] == [(step, step in (2, 3)) for step in range(6)]
    assert {name: value.unique().tolist() for name, value in latch.weights().items()} == {"a": [2.0], "b": [2.0], "half": [2.0]}
    assert all(latch.weights()[name].shape == value.shape for name, value in parameters.items())
    latch.release()
    parameters["a"].fill_(9.0)
    latch.note(6, (), None, [torch.tensor([float("inf")])])
    assert latch.arrived()[0][1] and latch.weights()["a"].unique().tolist() == [9.0]


def test_a_model_that_is_too_large_is_watched_without_its_weights() -> None:
    latch = Latch({"a": torch.zeros(1000)}, 100)
    latch.note(0, (), torch.tensor(float("nan")), [])
    assert not latch.keeps_weights and latch.weights() == {} and latch.arrived()[0][1]


def call(*inputs: torch.Tensor) -> Call:
    return Call(inputs, {}, {}, {}, {})


def test_large_batches_are_let_go_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit_lite.black_box.latch.MOST_INPUT_BYTES", 1000)
    latch = Latch({"a": torch.zeros(1)}, 100)
    for step in range(4):
        latch.note(step, (call(torch.zeros(100)),), torch.tensor(1.0), [])
    assert [bool(pending.calls) for pending, _ in latch.arrived()] == [False, True, True, True]  # the last one always


def test_only_some_steps_are_held() -> None:
    latch = Latch({"a": torch.zeros(1)}, 100)
    for step in range(MOST_IN_FLIGHT + 3):
        latch.note(step, (call(),), torch.tensor(1.0), [])
    held = [bool(pending.calls) for pending, _ in latch.arrived()]
    assert held == [False] * 3 + [True] * MOST_IN_FLIGHT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("between", "operation"), [("Logarithm", "log"), ("Root", "SqrtBackward0"), ("Overflow", "addmm")])
def test_on_a_gpu_the_operation_is_named(between: str, operation: str, tmp_path: Path) -> None:
    model = classifier(between).cuda()
    first = {name: value.cpu().clone() for name, value in model.state_dict().items()}

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(16, 4).cuda(), torch.randint(3, (16,)).cuda()

    train(model, tmp_path / "run", nn.functional.cross_entropy, batch, steps=30)
    kept = load_step(tmp_path / "run")
    assert kept.step == 0 and kept.weights is not None and kept.notes == []
    assert all(torch.equal(value, first[name]) for name, value in {**kept.weights, **kept.buffers}.items())
    assert replay(kept, classifier(between), device="cuda").operation == operation
    assert replay(kept, classifier(between)).operation == operation
