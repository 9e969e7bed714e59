from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.curvature import ForwardProbe
from cockpit_lite.curvature.sub_batch import SubBatch
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instruments.hessian_diagonal import HessianDiagonal, negative_share
from cockpit_lite.probes.hessian_diagonal import hessian_diagonal, is_piecewise_linear
from cockpit_lite.probes.replay import Replay
from tests.identity import cockpit


def net(activation: nn.Module, out: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, out)).double()


def conv() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).double()


def nested() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), nn.Linear(4, 3)).double()


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(4, 3)).double()


def twice() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(4, 3)).double()


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(6, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
TARGETS = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

Loss = Callable[[Tensor], Tensor]


def replay(model: nn.Module, inputs: Tensor, loss: Loss, scale: Tensor | None = None) -> tuple[Replay, Tensor]:
    probe = ForwardProbe(model)
    probe.start()
    value = loss(model(inputs))
    call = probe.call
    probe.stop()
    assert call is not None
    return Replay(value, call, scale), value


def dense_diagonal(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
    found = {}
    for (name, parameter), slope in zip(parameters.items(), slopes, strict=True):
        elements = [
            torch.autograd.grad(element, parameter, retain_graph=True)[0].flatten()[index]
            for index, element in enumerate(slope.flatten())
        ]
        found[name] = torch.stack(elements).view_as(parameter)
    return found


@pytest.mark.parametrize(
    ("model", "inputs", "loss"),
    [
        (net(nn.ReLU()), X, lambda z: F.cross_entropy(z, LABELS)),
        (net(nn.Tanh()), X, lambda z: F.cross_entropy(z, LABELS)),
        (net(nn.Sigmoid()), X, lambda z: F.mse_loss(z, TARGETS)),
        (net(nn.Tanh()), X, lambda z: F.cross_entropy(z, LABELS, reduction="sum") / 7),
        (net(nn.Tanh()), X, lambda z: 3 * (z - TARGETS).square().sum()),
        (conv(), IMAGES, lambda z: F.cross_entropy(z, LABELS)),
        (nested(), X, lambda z: F.cross_entropy(z, LABELS)),
    ],
    ids=["relu", "tanh", "sigmoid and squares", "sum", "own squares", "conv", "nested and in place"],
)
def test_against_the_dense_hessian(model: nn.Module, inputs: Tensor, loss: Loss) -> None:
    made, value = replay(model, inputs, loss)
    attributes = [dict(vars(module)) for module in model.modules()]
    found = hessian_diagonal(made)
    expected = dense_diagonal(model, value)
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9)
    assert [dict(vars(module)) for module in model.modules()] == attributes  # nothing was left behind
    assert all(parameter.grad is None and not hasattr(parameter, "diag_h") for parameter in model.parameters())


def test_what_a_gradient_scaler_did_is_undone() -> None:
    model = net(nn.Tanh())
    plain, value = replay(model, X, lambda z: F.cross_entropy(z, LABELS))
    scaled, _ = replay(model, X, lambda z: 512 * F.cross_entropy(z, LABELS), torch.tensor(512.0, dtype=torch.float64))
    expected = dense_diagonal(model, value)
    for found in (hessian_diagonal(plain), hessian_diagonal(scaled)):
        torch.testing.assert_close(found["0.weight"], expected["0.weight"], rtol=1e-6, atol=1e-9)


class Skipping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(x + torch.relu(self.first(x)))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x))


@pytest.mark.parametrize(
    ("model", "loss", "reason"),
    [
        (Skipping(), lambda z: F.cross_entropy(z, LABELS), "BackPACK cannot follow this model"),
        (tied(), lambda z: F.cross_entropy(z, LABELS), "used by two modules"),
        (twice(), lambda z: F.cross_entropy(z, LABELS), "used by two modules"),
        (Normalised(), lambda z: F.cross_entropy(z, LABELS), "BackPACK"),
        (net(nn.Dropout(0.5)), lambda z: F.cross_entropy(z, LABELS), "draws random numbers"),
        (net(nn.ReLU()), lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1), "smoothed"),
        (
            net(nn.ReLU()),
            lambda z: F.cross_entropy(z, LABELS, weight=torch.tensor([1.0, 2.0, 3.0]).double()),
            "weights of their own",
        ),
        (net(nn.ReLU()), lambda z: F.l1_loss(z, TARGETS), "no second derivative of the loss"),
        (net(nn.ReLU()), lambda z: F.cross_entropy(2 * z, LABELS), "something else than the model's output"),
        (net(nn.ReLU()), lambda z: (2 * z - TARGETS).square().mean(), "something else than the model's output"),
        (net(nn.ReLU()), lambda z: F.mse_loss(z, TARGETS) + F.cross_entropy(z, LABELS), "several terms"),
    ],
)
def test_where_backpack_does_not_know_there_is_a_reason(model: nn.Module, loss: Loss, reason: str) -> None:
    made, _ = replay(model, X, loss)
    with pytest.raises(NotMeasured, match=reason):
        hessian_diagonal(made)


def test_many_curved_units_are_too_dear() -> None:
    wide = nn.Sequential(nn.Linear(4, 200), nn.Sigmoid(), nn.Linear(200, 3)).double()
    made, _ = replay(wide, X, lambda z: F.cross_entropy(z, LABELS))
    with pytest.raises(NotMeasured, match="203 columns"):
        hessian_diagonal(made)
    flat = nn.Sequential(nn.Linear(4, 200), nn.ReLU(), nn.Linear(200, 3)).double()
    made, _ = replay(flat, X, lambda z: F.cross_entropy(z, LABELS))
    assert hessian_diagonal(made)


def test_in_a_real_loop(tmp_path: Path) -> None:
    model = net(nn.Tanh())
    before = copy.deepcopy(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[HessianDiagonal(sub_batch=None)], budget=None):
        F.cross_entropy(model(X), LABELS).backward()
        optimizer.step()
    run = load_run(tmp_path / "run")
    expected = dense_diagonal(before, F.cross_entropy(before(X), LABELS))
    for name, values in expected.items():
        assert run.series(f"hessian_diagonal/{name}")[1].tolist() == pytest.approx([values.mean().item()])
    elements = torch.cat([values.flatten() for values in expected.values()])
    assert run.series("negative_curvature")[1].tolist() == pytest.approx([(elements < 0).double().mean().item()])
    found = run.series("hessian_diagonal")[1][0]
    assert found[0] == pytest.approx(elements.min().item(), rel=1e-5)
    assert found[3] == pytest.approx(elements.median().item(), abs=1e-2)
    assert "kind" not in run.how("hessian_diagonal").get(0, {})  # exact


@pytest.mark.parametrize("loss", [lambda z: F.cross_entropy(z, LABELS), lambda z: 3 * (z - TARGETS).square().sum()])
def test_parts_of_the_batch_have_the_whole_as_their_mean(loss: Loss) -> None:
    model = net(nn.Tanh())
    made, value = replay(model, X, loss)
    halves = [hessian_diagonal(made, [SubBatch(torch.tensor(rows), 6, 0)]) for rows in ([0, 2, 5], [1, 3, 4])]
    for name, expected in dense_diagonal(model, value).items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, expected, rtol=1e-6, atol=1e-9)


def test_a_piecewise_linear_chain_takes_the_sampled_gauss_newton_diagonal(tmp_path: Path) -> None:
    """Over many draws its mean is the diagonal of the Hessian."""
    model = conv()
    optimizer = SGD(model.parameters(), lr=0.0)
    loss = F.cross_entropy(model(IMAGES), LABELS)
    expected = dense_diagonal(model, loss)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=["hessian_diagonal", "ggn_diagonal"], budget=None):
        for _ in range(100):
            F.cross_entropy(model(IMAGES), LABELS).backward()
            optimizer.step()
            optimizer.zero_grad()
    run = load_run(tmp_path / "run")
    for name, values in expected.items():
        found = run.series(f"hessian_diagonal/{name}")[1]
        assert found.mean() == pytest.approx(values.mean().item(), abs=4 * found.std() / len(found) ** 0.5 + 1e-9)
        assert found.tolist() == run.series(f"ggn_diagonal/{name}")[1].tolist()
    assert run.how("hessian_diagonal")[0]["kind"] == "estimated"
    assert "Gauss-Newton" in run.how("hessian_diagonal")[0]["note"]
    assert set(run.series("negative_curvature")[1].tolist()) == {0.0}


def doubled(model: nn.Module) -> nn.Module:
    model[0].register_forward_hook(lambda module, args, output: output.exp())
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (net(nn.ReLU()), True),
        (conv(), True),
        (nested(), True),
        (nn.Sequential(), True),
        (net(nn.Tanh()), False),
        (tied(), False),
        (nn.Sequential(layer := nn.Linear(4, 4), nn.ReLU(), layer), False),
        (Skipping(), False),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), False),
        (nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), False),
        (doubled(net(nn.ReLU())), False),
    ],
    ids=["relu", "conv", "nested", "empty", "tanh", "tied", "twice", "skipping", "normalised", "parametrised", "hook"],
)
def test_what_is_piecewise_linear(model: nn.Module, expected: bool) -> None:
    assert is_piecewise_linear(model) is expected


def test_elsewhere_the_gauss_newton_matrix_stands_in(tmp_path: Path) -> None:
    model = Skipping()
    optimizer = SGD(model.parameters(), lr=0.1)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=["hessian_diagonal"], budget=None):
        F.cross_entropy(model(X), LABELS).backward()
        optimizer.step()
    run = load_run(tmp_path / "run")
    assert run.how("hessian_diagonal")[0]["kind"] == "gauss-newton"
    assert "BackPACK cannot follow" in run.how("hessian_diagonal")[0]["note"]
    assert "negative_curvature" not in run.names


def test_the_share_of_negative_elements() -> None:
    assert negative_share({"a": torch.tensor([-1.0, 2.0]), "b": torch.tensor([[0.0, -3.0]])}).item() == 0.5
