"""The probe must not hold the graphs of forwards that no backward comes for."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from cockpit_lite.probes.per_sample import PerSampleProbe
from cockpit_lite.probes.per_sample.probe import MOST_WAITING


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))


def test_validation_without_no_grad_does_not_pile_up_graphs() -> None:
    model = _net()
    probe = PerSampleProbe(model, dict(model.named_parameters()))
    probe.start()
    outputs = [weakref.ref(model(torch.randn(3, 5))) for _ in range(20)]
    gc.collect()
    assert sum(output() is not None for output in outputs) <= MOST_WAITING
    probe.backward_begins()
    model(torch.randn(3, 5)).square().mean().backward()
    probe.backward_ends()
    probe.stop()
    gc.collect()
    assert not any(output() is not None for output in outputs)


@pytest.mark.parametrize(("calls", "covered"), [(MOST_WAITING, True), (MOST_WAITING + 1, False)])
def test_many_calls_in_one_backward_are_exact_or_named(calls: int, covered: bool) -> None:
    model = _net()
    probe = PerSampleProbe(model, dict(model.named_parameters()))
    probe.start()
    loss = torch.stack([model(torch.randn(3, 5)).square().mean() for _ in range(calls)]).mean()
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    gradient = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    statistics = probe.statistics(products=True, direction=gradient)
    probe.stop()
    assert bool(statistics.squared_norms) is covered
    if not covered:
        assert "many times before the backward" in next(iter(statistics.not_covered.values()))
