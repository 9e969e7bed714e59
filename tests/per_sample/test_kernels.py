"""What is read off the user's own kernels is what a slow loop calculates; and where it is not, that is noticed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample import PerSampleProbe, kernels
from cockpit_lite.probes.per_sample.extension import Forms
from cockpit_lite.probes.per_sample.kernels import statistics_of, watch_kernels
from cockpit_lite.probes.per_sample.rules import gates as gates_module
from cockpit_lite.probes.per_sample.rules import recurrent
from cockpit_lite.probes.per_sample.rules.normalization import PerSampleBatchNorm, PerSampleLayerNorm
from cockpit_lite.probes.per_sample.shadow import with_call
from tests.per_sample.checker import check

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def gates(module: nn.LSTM, key: str, inputs: Tensor) -> Tensor:
    """Return the gates in the order in which they are calculated, one time after the other."""
    weights = [module._parameters.get(f"{kind}_{key}") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    hidden = cell = inputs.new_zeros(inputs.shape[1], module.hidden_size)
    found = []
    for now in inputs.flip(0) if key.endswith("reverse") else inputs:
        both = nn.functional.linear(now, weights[0], weights[2]) + nn.functional.linear(hidden, weights[1], weights[3])
        enter, forget, new, output = both.chunk(4, -1)
        found.append([enter.sigmoid(), forget.sigmoid(), new.tanh(), output.sigmoid()])
        cell = found[-1][1] * cell + found[-1][0] * found[-1][2]
        hidden = found[-1][3] * cell.tanh()
    return torch.stack([torch.cat(parts, -1) for parts in found]).detach()


@pytest.mark.parametrize("hidden", [5, 16, 64])
@pytest.mark.parametrize("options", [{}, {"bias": False, "num_layers": 3}, {"bidirectional": True, "num_layers": 2}])
def test_gates_are_those_of_a_loop(hidden: int, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module, inputs = nn.LSTM(4, hidden, **options), torch.randn(6, 3, 4)
    output = module(inputs)[0]
    found = watch_kernels(module, output)
    assert sorted(found) == sorted(name.removeprefix("weight_ih_") for name in module._parameters if "weight_ih" in name)
    ends = ("", "_reverse") if module.bidirectional else ("",)
    for layer in range(module.num_layers):
        for end in ends:
            torch.testing.assert_close(found[f"l{layer}{end}"].gates, gates(module, f"l{layer}{end}", inputs))
        inputs = torch.cat([found[f"l{layer}{end}"].outputs for end in ends], -1)
    torch.testing.assert_close(inputs, output.detach())


def test_the_workspace_goes_with_the_graph() -> None:
    module = nn.LSTM(3, 4)
    output = module(torch.randn(5, 2, 3))[0]
    kernel = watch_kernels(module, output)["l0"]
    before = kernel.gates.clone()
    output.sum().backward()
    assert torch.equal(kernel.gates, before)
    assert kernel.gates.untyped_storage().nbytes() == before.numel() * before.element_size()


@pytest.mark.parametrize("row", [16, 48])
def test_another_layout_is_noticed(row: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows of another length the gates are those of other samples: they are calculated instead."""
    calculated = []
    through = recurrent.through_gates

    def counted(*args: Any, activated: Tensor | None = None, **options: Any) -> Any:
        calculated.append(activated is None)
        return through(*args, activated=activated, **options)

    monkeypatch.setattr(recurrent, "through_gates", counted)
    monkeypatch.setattr(kernels, "ROW", row)
    check(nn.LSTM(3, 5, num_layers=2, batch_first=True), torch.randn(4, 6, 3))
    # two layers in float64, which has no such kernel, and two in float32; where these are refused they come once more
    assert calculated == [True] * 2 + ([False] * 2 if row == 16 else [False, True] * 2)


@pytest.mark.parametrize("shape", [(6, 5, 20, 7), (3, 2, 16, 70), (1, 3, 64, 4), (4, 3, 256, 2)])
@pytest.mark.parametrize("end", ["", "_reverse"])
def test_what_was_sent_back_through_time_is_that_of_a_loop(shape: tuple[int, int, int, int], end: str) -> None:
    times, samples, hidden, features = shape
    torch.manual_seed(0)
    module, inputs = nn.LSTM(features, hidden, bidirectional=True), torch.randn(times, samples, features)
    deltas, start = torch.randn(times, samples, 2 * hidden), torch.randn(2, 2, samples, hidden)
    output = module(inputs, (start[0], start[1]))[0]
    kernel = watch_kernels(module, output)[f"l0{end}"]
    output.backward(deltas)
    assert kernel.way_back is not None
    assert kernel.workspace is None

    weights = [module._parameters[f"{kind}_l0{end}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    number = int(bool(end))
    delta = deltas.chunk(2, -1)[number]
    states = [tuple(state[number].requires_grad_() for state in start)]
    before = []  # of every time: states that nothing but this time was made from
    for now in inputs.flip(0) if end else inputs:
        before.append(tuple(state.view_as(state) for state in states[-1]))
        states.append(torch.lstm_cell(now, before[-1], *weights))
    outputs = torch.stack([state[0] for state in states[1:]])
    towards = [state for both in before for state in both]
    found = torch.autograd.grad((outputs * (delta.flip(0) if end else delta)).sum(), towards)
    torch.testing.assert_close(kernel.way_back.hidden, torch.stack(found[::2]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(kernel.way_back.carried, torch.stack(found[1::2]), rtol=1e-4, atol=1e-5)
    cells = [state[1].detach() for state in states[1:-1]]
    torch.testing.assert_close(kernel.way_back.cells, torch.stack(cells) if cells else kernel.way_back.cells)


@pytest.mark.parametrize("spoilt", ["", "cells", "hidden", "carried"])
def test_nobody_goes_back_through_time_again_unless_what_is_read_off_is_something_else(
    spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops, way_back_in, back = [], kernels.way_back_in, gates_module._lstm

    def spoil(*args: Any) -> Any:
        found = way_back_in(*args)
        return found._replace(**{spoilt: found._asdict()[spoilt].flip(0)}) if spoilt else found

    monkeypatch.setattr(kernels, "way_back_in", spoil)
    monkeypatch.setattr(gates_module, "_lstm", lambda gates, *rest: loops.append(gates.dtype) or back(gates, *rest))
    check(nn.LSTM(3, 5, bidirectional=True, batch_first=True), torch.randn(4, 6, 3))
    assert loops == [torch.float64] * 2 + ([torch.float32] * 2 if spoilt else [])


def test_a_second_pass_through_the_same_graph_is_noticed() -> None:
    """The workspace knows only what the first one sent back."""
    torch.manual_seed(0)
    module, inputs = nn.LSTM(3, 5, batch_first=True), torch.randn(4, 6, 3)
    parameters = dict(module.named_parameters())
    probe = PerSampleProbe(module, parameters)
    probe.start(products=False, squares=False)
    losses = module(inputs)[0].square().sum((1, 2))
    for factor, keep in ((1.0, True), (2.0, False)):
        probe.backward_begins()
        (factor * losses.sum()).backward(retain_graph=keep)
        probe.backward_ends()
    gradient = {name: parameter.grad for name, parameter in parameters.items()}
    found = probe.statistics(False, None, gradient)
    probe.stop()
    assert not found.not_covered
    for n in range(4):
        alone = torch.autograd.grad(3 * module(inputs[n : n + 1])[0].square().sum(), list(parameters.values()))
        for name, contribution in zip(parameters, alone, strict=True):
            torch.testing.assert_close(found.squared_norms[name][n], contribution.square().sum(), rtol=1e-4, atol=1e-6)


def test_other_recurrent_modules_have_none() -> None:
    module = nn.GRU(3, 4)
    assert watch_kernels(module, module(torch.randn(5, 2, 3))[0]) == {}
    double = nn.LSTM(3, 4).double()
    assert watch_kernels(double, double(torch.randn(5, 2, 3).double())[0]) == {}


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2), (6, 3, 5, 4)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_normalisation_is_taken_apart_by_its_own_statistics(
    shape: tuple[int, ...], training: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    module = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)](3).to(dtype).train(training)
    module.running_mean.add_(2.0)
    inputs, deltas = (3 * torch.randn(shape, generator=generator, dtype=dtype) + 50 for _ in range(2))
    output = module(inputs)
    known = statistics_of(output)
    assert (known is None) == (not training)
    axes = [0, *range(2, len(shape))]
    if known is not None:
        torch.testing.assert_close(known[0], inputs.mean(axes))
        torch.testing.assert_close(known[1], (inputs.var(axes, correction=0) + module.eps).rsqrt())
    products, deltas64 = deltas.double() * output.detach().double(), deltas.double()  # weight 1, bias 0: the output is normalised
    expected = [values.reshape(6, 3, -1).sum(2).to(dtype) for values in (products, deltas64)]
    for statistics in (None, known):
        copy = with_call(module, [inputs], None)
        copy.__dict__["statistics"] = statistics
        found = PerSampleBatchNorm().measure_all(Forms(), copy, ("weight", "bias"), (), [deltas])
        torch.testing.assert_close(found["weight"].values, expected[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found["bias"].values, expected[1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 5, 3, 2), (0, 5, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_normalisation_is_taken_apart_by_its_own_statistics(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    module = nn.LayerNorm(shape[2:] if len(shape) == 4 else shape[-1:], dtype=dtype)
    inputs, deltas = (3 * torch.randn(shape, generator=generator, dtype=dtype) + 5 for _ in range(2))
    inputs.requires_grad_()
    known = statistics_of(module(inputs))
    assert known is None if 0 in shape else known is not None
    for statistics in (None, known):
        copy = with_call(module, [inputs], None)
        copy.__dict__["statistics"] = statistics
        found = PerSampleLayerNorm().measure_all(Forms(), copy, ("weight",), (), [deltas])["weight"].values
        assert found.shape == (shape[0], *module.weight.shape)
        for n in range(shape[0]):
            double = nn.LayerNorm(module.normalized_shape, dtype=torch.float64)
            (double(inputs[n].detach().double()) * deltas[n].double()).sum().backward()
            torch.testing.assert_close(found[n], double.weight.grad.to(dtype), rtol=1e-4, atol=1e-4)


def test_the_probe_reads_the_statistics_of_a_layer_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it did not, they would be calculated once more."""
    monkeypatch.setattr(PerSampleLayerNorm, "normalized", lambda rule, module: pytest.fail("calculated again"))
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double()
    check(model, torch.randn(5, 6, 3, dtype=torch.float64))
