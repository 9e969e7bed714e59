"""Linear layers measured straight from their call say what their forms say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample import PerSampleProbe, PerSampleStatistics, survey

SIZE, SOME = 8, 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 3, bias=False)).double()


def statistics(
    model: nn.Module, penalty: Callable[[], Tensor | float] = lambda: 0.0, clipped: bool = False
) -> PerSampleStatistics:
    """Return everything that may be asked for: also along another direction, from some of the samples, and drawn elements."""
    inputs = torch.randn(SIZE, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = dict(model.named_parameters())
    probe = PerSampleProbe(model, parameters)
    away = {name: parameter.detach().cos() for name, parameter in parameters.items()}
    probe.start(directions={"away": away}, elements=10**6, some=SOME)
    loss = model(inputs).square().mean() + penalty()
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    gradient = {name: parameter.grad for name, parameter in parameters.items()}
    direction = {name: value / 2 for name, value in gradient.items()} if clipped else gradient
    found = probe.statistics(True, direction, gradient, squares=True)
    probe.stop()
    return found


@pytest.mark.parametrize("clipped", [False, True])
def test_it_says_what_the_forms_say(clipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = statistics(net(), clipped=clipped)
    asked: list[str] = []
    monkeypatch.setattr(survey, "is_plain", lambda call, size: asked.append(type(call.module).__name__))
    by_forms = statistics(net(), clipped=clipped)
    assert set(asked) == {"Linear"}  # nobody measured them plainly this time
    names = ["2.weight", "0.weight", "0.bias"]
    drawn = [{name: values.elements[name].values for name in names} for values in (plain, by_forms)]
    for ours, theirs in (
        (plain.squared_norms, by_forms.squared_norms),
        (plain.products, by_forms.products),
        (plain.along["away"], by_forms.along["away"]),
        (plain.sum_of_squares, by_forms.sum_of_squares),
        drawn,
    ):
        assert list(ours) == list(theirs) == names
        for name, values in ours.items():
            torch.testing.assert_close(values, theirs[name], rtol=1e-12, atol=1e-20)
    assert len(plain.along["away"]["0.bias"]) == SIZE // (SIZE // SOME)


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("clipped", [False, True])
def test_a_weight_that_is_also_used_elsewhere_is_named(quick: bool, clipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit_lite.probes.per_sample.plain.sum_is_quick", lambda inputs, deltas: quick)
    model = net()
    found = statistics(model, lambda: 0.1 * model[0].weight.square().sum(), clipped)
    assert list(found.not_covered) == ["0.weight"]
    assert "also used outside" in found.not_covered["0.weight"]
    assert set(found.squared_norms) == set(found.along["away"]) == {"2.weight", "0.bias"}
