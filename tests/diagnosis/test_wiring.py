"""Wiring faults in real loops, each beside the sound loop that looks most like it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from cockpit_lite import Cockpit, Every
from cockpit_lite.diagnosis.wiring import RULES, ClippingBeforeUnscaling
from tests.diagnosis.histories import history, readable

WIRING = {rule.name for rule in RULES}

#: What a loop does with model, optimizer and number of the step.
Loop = Callable[[nn.Module, Optimizer, int], None]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cockpit, "_write_results", lambda self: None)


def net(*, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(10, 20), nn.ReLU(), nn.Dropout(dropout), nn.Linear(20, 16), nn.Linear(16, 3)]
    return nn.Sequential(*layers[:1], nn.BatchNorm1d(20), *layers[1:]) if norm else nn.Sequential(*layers)


def batch(size: int = 16) -> Tensor:
    return torch.randn(size, 10)


def plain(model: nn.Module, optimizer: Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(batch()).square().mean().backward()
    optimizer.step()


def findings(
    run: Path, model: nn.Module, optimizer: Optimizer | list[Optimizer], loop: Loop = plain, steps: int = 4
) -> dict[str, tuple[str, ...]]:
    """Return name -> where of the wiring faults that were found."""
    first = optimizer[0] if isinstance(optimizer, list) else optimizer
    instruments = ["wiring", "clip_ratio", "grad_norm", "update_size"]
    with Cockpit(model, optimizer, run=run, instruments=instruments, schedule=Every(1), budget=None) as cockpit:
        for step in range(steps):
            loop(model, first, step)
    for alert in cockpit.alerts:
        readable(alert)
    return {alert.name: alert.where for alert in cockpit.alerts if alert.name in WIRING}


def sgd(model: nn.Module) -> SGD:
    return SGD(model.parameters(), lr=0.01)


def test_sound_loops_raise_nothing(tmp_path: Path) -> None:
    for number, model in enumerate((net(), net(dropout=0.5), net(norm=True))):
        assert findings(tmp_path / f"{number}", model, Adam(model.parameters(), lr=1e-3)) == {}


def test_gradients_that_are_not_zeroed(tmp_path: Path) -> None:
    def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        model(batch()).square().mean().backward()
        optimizer.step()

    model = net()
    assert "gradients-not-zeroed" in findings(tmp_path / "run", model, sgd(model), loop)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_is_not_forgetting(tmp_path: Path, set_to_none: bool) -> None:
    def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        for _ in range(3):
            (model(batch()).square().mean() / 3).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)

    model = net()
    assert findings(tmp_path / "run", model, sgd(model), loop) == {}


def test_gradients_of_the_other_player_are_no_left_overs(tmp_path: Path) -> None:
    model = nn.ModuleDict({"generator": net(), "critic": nn.Linear(3, 1)})
    players = [SGD(model["generator"].parameters(), lr=0.01), SGD(model["critic"].parameters(), lr=0.01)]

    def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        players[1].zero_grad()
        model["critic"](model["generator"](batch()).detach()).mean().backward()  # type: ignore[index]
        players[1].step()
        players[0].zero_grad()
        model["critic"](model["generator"](batch())).square().mean().backward()  # type: ignore[index]
        players[0].step()

    assert findings(tmp_path / "run", model, list(players), loop) == {}


def test_a_loop_without_steps(tmp_path: Path) -> None:
    def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        optimizer.zero_grad()
        model(batch()).square().mean().backward()

    model = net()
    assert "optimizer-not-stepping" in findings(tmp_path / "zeroed", model, sgd(model), loop, steps=6)
    assert "optimizer-not-stepping" in findings(
        tmp_path / "not", model, sgd(model), lambda model, optimizer, step: model(batch()).square().mean().backward()
    )


def test_steps_that_move_nothing(tmp_path: Path) -> None:
    def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        before = copy.deepcopy(model.state_dict())
        plain(model, optimizer, step)
        model.load_state_dict(before)

    # seen at the optimizer, the step has moved the weights: only an optimizer that itself does nothing is this fault
    model = net()
    assert findings(tmp_path / "restored", model, sgd(model), loop) == {}

    class Still(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            pass

    model = net()
    assert "optimizer-not-stepping" in findings(tmp_path / "still", model, Still(model.parameters(), lr=0.1))
    assert findings(tmp_path / "warm-up", model, SGD(model.parameters(), lr=0.0)) == {}


def test_parameters_in_no_optimizer(tmp_path: Path) -> None:
    model = net()
    found = findings(tmp_path / "run", model, SGD(model[3:].parameters(), lr=0.01))
    assert found == {"parameter-not-optimized": ("0.weight", "0.bias")}


def test_an_optimizer_that_the_cockpit_was_not_shown(tmp_path: Path) -> None:
    model = net()
    other = SGD(model[:3].parameters(), lr=0.01)

    def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
        other.zero_grad()
        plain(model, optimizer, step)
        other.step()

    assert findings(tmp_path / "run", model, SGD(model[3:].parameters(), lr=0.01), loop) == {}


def test_a_weight_frozen_by_accident(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))
    model[0].requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert findings(tmp_path / "run", model, SGD(trained, lr=0.01)) == {"frozen-parameter": ("0.weight",)}


def test_a_frozen_backbone_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():  # as training leaves it: no longer spread evenly
        model[0].weight.mul_(torch.randn(64, 1).exp())
    model[0].requires_grad_(False)
    assert findings(tmp_path / "trained", model, sgd(model[2])) == {}
    larger = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    larger[:3].requires_grad_(False)
    assert findings(tmp_path / "larger", larger, sgd(larger[4])) == {}


class Cut(nn.Module):
    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.middle, self.head, self.unused = (nn.Linear(10, 10) for _ in range(4))
        self.cut = cut

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.middle(self.encoder(inputs).relu())
        outputs = self.head(self.cut(hidden))
        self.unused(hidden)
        return outputs


@pytest.mark.parametrize("cut", [Tensor.detach, lambda hidden: torch.tensor(hidden.tolist())])
def test_a_cut_through_the_graph(cut: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model = Cut(cut)
    assert findings(tmp_path / "run", model, sgd(model)) == {"graph-cut": ("middle", "head")}


def test_a_head_that_the_loss_does_not_use_is_no_cut(tmp_path: Path) -> None:
    model = Cut(lambda hidden: hidden)
    assert findings(tmp_path / "run", model, sgd(model)) == {}


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(30, 12), nn.Linear(12, 30, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.embedding(inputs[:, :5].abs().mul(10).long().clamp(max=29)))


def test_tied_weights(tmp_path: Path) -> None:
    model = Language()
    assert findings(tmp_path / "tied", model, sgd(model)) == {}
    model.head.weight = nn.Parameter(model.embedding.weight.detach().clone())
    assert findings(tmp_path / "apart", model, sgd(model)) == {"tied-weights-apart": ("head.weight",)}
    model.head = nn.Linear(12, 30, bias=False)
    assert findings(tmp_path / "untied", model, sgd(model)) == {}


def test_modes(tmp_path: Path) -> None:
    model = net(dropout=0.5, norm=True).eval()
    assert findings(tmp_path / "eval", model, sgd(model)) == {"training-in-eval-mode": ("1", "3")}
    model = net(dropout=0.5, norm=True)
    model[1].eval()
    assert findings(tmp_path / "frozen norm", model, sgd(model)) == {}
    model = net().eval()  # nothing in it behaves differently
    assert findings(tmp_path / "nothing", model, sgd(model)) == {}


def test_validation(tmp_path: Path) -> None:
    def validates(train: bool, every: int) -> Loop:
        def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
            plain(model, optimizer, step)
            if step % every == every - 1:
                model.train(train)
                with torch.no_grad():
                    model(batch())
                model.train()

        return loop

    model = net(dropout=0.5)
    found = findings(tmp_path / "train", model, sgd(model), validates(True, 3), steps=6)
    assert found == {"validating-in-train-mode": ("2",)}
    assert findings(tmp_path / "eval", model, sgd(model), validates(False, 3), steps=6) == {}
    assert findings(tmp_path / "teacher", model, sgd(model), validates(True, 1), steps=6).keys() <= {"validating-in-train-mode"}


def test_batch_norm_of_two_values(tmp_path: Path) -> None:
    def of_size(size: int) -> Loop:
        def loop(model: nn.Module, optimizer: Optimizer, step: int) -> None:
            optimizer.zero_grad()
            model(batch(size)).square().mean().backward()
            optimizer.step()

        return loop

    model = net(norm=True)
    assert findings(tmp_path / "two", model, sgd(model), of_size(2)) == {"batch-norm-too-few-values": ("1",)}
    assert findings(tmp_path / "enough", model, sgd(model), of_size(8)) == {}


CLIPPED = {"loss_scale": 65536.0, "grad_norm": 3.0}


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ({**CLIPPED, "clip_ratio": 1 / 3 / 65536}, True),
        ({**CLIPPED, "clip_ratio": 1 / 3}, False),  # unscaled first
        ({**CLIPPED, "clip_ratio": 1.0}, False),
        ({"grad_norm": 3.0, "clip_ratio": 1e-5}, False),  # no scaler
    ],
)
def test_clipping_before_unscaling(levels: dict[str, float], expected: bool) -> None:
    alert = ClippingBeforeUnscaling().check(history(3, **levels))  # type: ignore[arg-type]
    assert (alert is not None) == expected
    if alert is not None:
        readable(alert)
