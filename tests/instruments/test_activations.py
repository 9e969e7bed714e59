"""Activation statistics against hooks that keep every output, over the zoo, and on nets whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from cockpit_lite import load_run
from cockpit_lite.instruments import ActivationMean, ActivationStd, DeadUnits, Saturation
from cockpit_lite.probes.activations import ActivationProbe, unit_axis
from cockpit_lite.run import Run
from tests.identity import EVERYTHING, cockpit
from tests.zoo import ZOO, Architecture

NAMES = ("activation_mean", "activation_std", "dead_units", "saturation")
INSTRUMENTS = [ActivationMean(), ActivationStd(), DeadUnits(), Saturation()]


def watch(model: nn.Module, folder: Path, step: Callable[[], None]) -> Run:
    """Run one step that ends with the optimizer's; ``step`` does the forwards and backwards."""
    optimizer = SGD(model.parameters(), lr=0.01)
    with cockpit(model, optimizer, run=folder, **{**EVERYTHING, "instruments": INSTRUMENTS}):
        step()
        optimizer.step()
    return load_run(folder)


def values(run: Run, name: str) -> dict[str, float]:
    """Return the readings ``name/<module>`` of step 0 by module."""
    start = f"{name}/"
    return {key.removeprefix(start): float(run.series(key)[1][0]) for key in run.names if key.startswith(start)}


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if not a.checkpointed], ids=lambda a: a.name)
def test_mean_and_std_over_the_zoo(architecture: Architecture, tmp_path: Path) -> None:
    """Against all outputs kept in float64."""
    model, batch = architecture.build(), architecture.batch(6, torch.Generator().manual_seed(5))
    outputs: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():

        def keep(module: nn.Module, args: object, output: object, name: str = name or type(model).__name__) -> None:
            value = output[0] if isinstance(output, tuple) else output
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
                outputs.setdefault(name, []).append(value.detach().double().flatten())

        handles.append(module.register_forward_hook(keep))
    torch.manual_seed(3)
    architecture.loss(model, batch)
    for handle in handles:
        handle.remove()
    model = architecture.build()
    torch.manual_seed(3)
    run = watch(model, tmp_path / "run", lambda: architecture.loss(model, batch).backward())
    found = values(run, "activation_std")
    assert found or run.not_measured["activation_std"]
    for name, value in found.items():
        kept = torch.cat(outputs[name])
        assert value == pytest.approx(kept.std(correction=0).item(), rel=1e-4, abs=1e-6), name
        mean = values(run, "activation_mean")[name]
        assert mean == pytest.approx(kept.mean().item(), rel=1e-4, abs=1e-5 * float(kept.abs().max())), name
    if found:
        squares = sum(((kept := torch.cat(outputs[name])) - kept.mean()).square().sum().item() for name in found)
        count = sum(torch.cat(outputs[name]).numel() for name in found)
        assert float(run.series("activation_std")[1][0]) == pytest.approx((squares / count) ** 0.5, rel=1e-4)
        everything = torch.cat([torch.cat(outputs[name]) for name in found])
        mean = float(run.series("activation_mean")[1][0])
        assert mean == pytest.approx(everything.mean().item(), rel=1e-4, abs=1e-5 * float(everything.abs().max()))
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.LSTM, nn.ReLU))}
    assert {name for name in layers & set(outputs)} <= set(found)


def test_accumulated_batches_count_together(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    batches = [torch.randn(size, 4) * size for size in (3, 7)]
    with torch.no_grad():
        hidden = model[:2](torch.cat(batches))

    def step() -> None:
        for batch in batches:
            model(batch).sum().backward()

    run = watch(model, tmp_path / "run", step)
    assert values(run, "activation_std")["1"] == pytest.approx(hidden.std(correction=0).item(), rel=1e-5)
    assert values(run, "dead_units")["1"] == (hidden == 0).all(0).float().mean().item()


def test_dead_units_by_module_and_worst(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(inplace=True), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].bias[:3] = -1e6
        model[2].bias[0] = -1e6
        model[0].bias[3:] = 100
        model[2].bias[1:] = 100
    run = watch(model, tmp_path / "run", lambda: model(torch.rand(20, 4)).sum().backward())
    assert values(run, "dead_units") == pytest.approx({"1": 0.3, "3": 1 / 6})
    assert float(run.series("dead_units")[1][0]) == pytest.approx(0.3)


class Block(nn.Module):
    """One ReLU behind two convolutions, as in ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(images))))


def test_units_are_channels_and_one_relu_in_two_places_has_both(tmp_path: Path) -> None:
    model = Block()
    with torch.no_grad():
        model.first.bias.copy_(torch.tensor([-1e6, 10.0, 10.0, 10.0]))
        model.second.bias.copy_(torch.tensor([1e3, -1e6, 1e3, -1e6]))
    run = watch(model, tmp_path / "run", lambda: model(torch.rand(5, 1, 8, 8)).sum().backward())
    assert values(run, "dead_units") == {"relu": 3 / 8}


@pytest.mark.parametrize(
    ("shape", "layer", "axis"),
    [
        ((5, 3), None, 1),
        ((5, 7, 3), nn.Linear(2, 3), 2),
        ((5, 7, 7, 3), nn.Linear(2, 3), 3),
        ((5, 3, 7), nn.Conv1d(2, 3, 1), 1),
        ((3, 7, 9), nn.Conv2d(2, 3, 1), 0),  # unbatched
        ((5, 3, 7, 7), nn.BatchNorm2d(3), 1),
        ((5, 7, 3), nn.BatchNorm1d(3), 2),  # transposed behind it
        ((5, 7, 7, 3), nn.LayerNorm(3), 3),
        ((5, 3, 7, 7), nn.LayerNorm(3), 1),  # as in ConvNeXt, permuted behind it
        ((5, 3, 7, 7), None, 1),
        ((5, 7, 3), None, 2),
    ],
)
def test_unit_axis(shape: tuple[int, ...], layer: nn.Module | None, axis: int) -> None:
    assert unit_axis(torch.Size(shape), layer) % len(shape) == axis


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (nn.Sigmoid(), torch.sigmoid),
        (nn.Tanh(), torch.tanh),
        (nn.Hardtanh(-2, 1), lambda x: F.hardtanh(x, -2, 1)),
        (nn.Hardsigmoid(), F.hardsigmoid),
    ],
    ids=lambda value: type(value).__name__,
)
def test_saturation_against_the_derivative(module: nn.Module, function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    inputs = torch.randn(50, 4) * 10
    model = nn.Sequential(nn.Linear(4, 20), module)
    with torch.no_grad():
        before = model[0](inputs).double()
    slope = torch.func.vmap(torch.func.grad(lambda x: function(x)))(before.flatten())
    steepest = torch.func.grad(function)(torch.tensor(0.0, dtype=torch.float64))
    expected = (slope < 0.01 * steepest).double().mean().item()
    assert 0.05 < expected < 0.95
    run = watch(model, tmp_path / "run", lambda: model(inputs).sum().backward())
    assert values(run, "saturation") == pytest.approx({"1": expected}, abs=1e-6)
    assert float(run.series("saturation")[1][0]) == pytest.approx(expected, abs=1e-6)


def test_half_precision_does_not_overflow(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).to(torch.float16)
    inputs = torch.randn(8, 4).to(torch.float16)
    with torch.no_grad():
        model[0].weight.fill_(1e3)
        expected = model(inputs).double().std(correction=0).item()
    assert expected**2 > torch.finfo(torch.float16).max
    run = watch(model, tmp_path / "run", lambda: model(inputs).float().mean().backward())
    assert values(run, "activation_std")["0"] == pytest.approx(expected, rel=1e-5)


def test_nan_is_shown_and_is_no_dead_unit(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    run = watch(model, tmp_path / "run", lambda: model(torch.full((3, 2), torch.nan)).sum().backward())
    assert torch.tensor(values(run, "activation_std")["1"]).isnan()
    assert values(run, "dead_units") == {"1": 0.0}


def test_validation_in_between_does_not_count(tmp_path: Path) -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 3)), torch.randn(5, 3)
    with torch.no_grad():
        expected = model(inputs).std(correction=0).item()

    def step() -> None:
        model(inputs).sum().backward()
        with torch.no_grad():
            model(1000 * inputs)
        model(1000 * inputs)

    run = watch(model, tmp_path / "run", step)
    assert values(run, "activation_std")["0"] == pytest.approx(expected, rel=1e-5)


def test_a_layer_whose_output_is_changed_in_place(tmp_path: Path) -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.randn(5, 4, 3)
    with torch.no_grad():
        expected = model[0](inputs).std(correction=0).item()
    run = watch(model, tmp_path / "run", lambda: model(inputs).sum().backward())
    assert values(run, "activation_std")["0"] == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_was_thrown_away_does_not_count(tmp_path: Path) -> None:
    model, inputs = nn.Sequential(nn.Linear(3, 3)), torch.randn(5, 3)
    with torch.no_grad():
        expected = model(inputs).std(correction=0).item()

    def step() -> None:
        model(1000 * inputs).sum().backward()
        model.zero_grad()
        model(inputs).sum().backward()

    run = watch(model, tmp_path / "run", step)
    assert values(run, "activation_std")["0"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_seen_has_a_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    run = watch(model, tmp_path / "run", lambda: model(torch.randn(2, 3)).sum().backward())
    assert "ReLU" in run.not_measured["dead_units"]
    assert "tanh" in run.not_measured["saturation"]


def test_a_failure_stays_in_the_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(ActivationProbe, "_record", fail)
    model = nn.Sequential(nn.Linear(3, 3))
    run = watch(model, tmp_path / "run", lambda: model(torch.randn(2, 3)).sum().backward())
    for name in NAMES:
        assert "broken" in run.not_measured[name]


def test_a_compiled_model_is_left_alone(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    model.compile(backend="eager")
    run = watch(model, tmp_path / "run", lambda: model(torch.randn(2, 3)).sum().backward())
    for name in NAMES:
        assert "compiled" in run.not_measured[name]


def test_nothing_of_an_output_is_kept() -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Sigmoid())
    probe = ActivationProbe(model)
    probe.start()
    model(torch.randn(100, 100)).sum().backward()
    found = probe.activations()
    probe.stop()
    assert not found.samples  # nobody has asked for them
    tensors = [found.means, found.variances]
    tensors += [peak for peaks in found.peaks.values() for peak in peaks]
    tensors += [saturated for calls in found.saturated.values() for saturated, _ in calls]
    assert len(tensors) == 4
    for tensor in tensors:
        assert tensor.grad_fn is None
        assert tensor.untyped_storage().nbytes() <= 400
