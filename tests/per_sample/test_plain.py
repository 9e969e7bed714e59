"""Linear layers measured straight from their call say what their forms say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample import survey
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics
from tests.per_sample.checker import watched

SIZE = 8


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3, bias=False)).double()


def statistics(model: nn.Module, loss: Callable[[Tensor], Tensor] = lambda output: output.square().mean()) -> PerSampleStatistics:
    inputs = torch.randn(SIZE, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return watched(model, lambda: loss(model(inputs)))[0]


def test_it_says_what_the_forms_say(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = statistics(net())
    measured: list[str] = []
    monkeypatch.setattr(survey, "is_plain", lambda call, size: measured.append(type(call.module).__name__))
    by_forms = statistics(net())
    assert set(measured) == {"Linear"}  # nobody measured them plainly this time
    for kind in ("squared_norms", "products", "sum_of_squares"):
        ours, theirs = getattr(plain, kind), getattr(by_forms, kind)
        assert list(ours) == list(theirs) == ["2.weight", "0.weight", "0.bias"]
        for name, values in ours.items():
            torch.testing.assert_close(values, theirs[name], rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("quick", [True, False])
def test_a_weight_that_is_also_used_elsewhere_is_named(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit_lite.probes.per_sample.plain.sum_is_quick", lambda inputs, deltas: quick)
    model = net()
    found = statistics(model, lambda output: output.square().mean() + 0.1 * model[0].weight.square().sum())
    assert list(found.not_covered) == ["0.weight"]
    assert "also used outside" in found.not_covered["0.weight"]
    assert set(found.squared_norms) == {"2.weight", "0.bias"}
