"""Elements that are drawn as layers are measured, early or late, against a loop over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics, drawing, early

N = 7


def net() -> nn.Sequential:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(2, 4, 3), nn.Linear(4, 3)
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(2), nn.Linear(16, 5), nn.LayerNorm(5), nn.Flatten(), nn.Linear(20, 4), head)


def loss_of(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().sum() / N


def watched(model: nn.Module, batches: list[Tensor], elements: int, one_backward: bool) -> PerSampleStatistics:
    parameters = dict(model.named_parameters())
    probe = PerSampleProbe(model, parameters)
    probe.start(squares=False, one_backward=one_backward, elements=elements, seed=3)
    for inputs in batches:
        loss = loss_of(model, inputs)
        probe.backward_begins()
        loss.backward()
        probe.backward_ends()
    gradient = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    found = probe.statistics(True, gradient)
    probe.stop()
    assert not found.not_covered
    return found


@pytest.mark.parametrize("elements", [60, 100_000])
@pytest.mark.parametrize("way", ["as they arrive", "at the end", "two micro-batches"])
def test_drawn_elements_are_those_of_the_contributions(way: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SAMPLES", 3)  # so that not every sample is looked at
    if way == "as they arrive":
        monkeypatch.setattr(early, "KEPT", 0)
    model, inputs = net(), torch.randn(N, 2, 6, 6)
    batches = [inputs[:3], inputs[3:]] if way == "two micro-batches" else [inputs]
    found = watched(model, batches, elements, one_backward=way != "two micro-batches")
    assert set(found.elements) <= set(found.squared_norms) and len(found.elements) > 1
    single = [torch.autograd.grad(loss_of(model, x[None]), list(model.parameters())) for x in inputs]
    for (name, _), *contributions in zip(model.named_parameters(), *single, strict=True):
        if name not in found.elements:
            continue
        positions, values = found.elements[name]
        expected = torch.stack(contributions).flatten(1)[:, positions]
        starts = [first for first in range(2) if values.shape == expected[first::2].shape]
        assert any(torch.allclose(values, expected[first::2], atol=1e-6) for first in starts), name


def test_what_is_thrown_away_is_not_drawn_from() -> None:
    model = net()
    found = watched(model, [torch.randn(N, 2, 6, 6)], 60, one_backward=True)
    name = next(iter(found.elements))
    found.drop(name)
    assert name not in found.elements
    left = dict(found.elements)
    found.unscale(torch.tensor(2.0))
    assert all(torch.equal(2 * found.elements[other].values, left[other].values) for other in left)
