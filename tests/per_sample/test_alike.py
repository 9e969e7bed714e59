"""Small vectors of one length measured together say what they say one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.probes.per_sample import PerSampleProbe, alike, early
from cockpit_lite.probes.per_sample.forms import Dense
from cockpit_lite.probes.per_sample.statistics import PerSampleStatistics


def statistics(one_backward: bool, clipped: bool = False, penalty: float = 0.0) -> PerSampleStatistics:
    """Return everything that may be asked for of a net with five vectors of one length and one of another."""
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    model = nn.Sequential(*layers).double()
    parameters = dict(model.named_parameters())
    inputs = torch.randn(8, 5, 4, dtype=torch.float64)
    # one parameter has no part in this direction
    away = {name: parameter.detach().cos() for name, parameter in parameters.items() if name != "1.bias"}
    probe = PerSampleProbe(model, parameters)
    probe.start(directions={"away": away}, elements=10**6, some=4, one_backward=one_backward)
    loss = model(inputs).square().mean() + penalty * model[1].weight.square().sum()
    probe.backward_begins()
    loss.backward()
    probe.backward_ends()
    gradient = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    direction = {name: value / 2 for name, value in gradient.items()} if clipped else gradient
    found = probe.statistics(True, direction, gradient, squares=True)
    probe.stop()
    return found


@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("clipped", [False, True])
def test_together_they_say_what_each_says_alone(clipped: bool, in_backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "KEPT", 0)
    together = statistics(in_backward and not clipped, clipped)
    monkeypatch.setattr(alike, "SMALL", -1)
    alone = statistics(False, clipped)
    assert not together.not_covered
    for ours, theirs in (
        (together.squared_norms, alone.squared_norms),
        (together.products, alone.products),
        (together.along["away"], alone.along["away"]),
        (together.sum_of_squares, alone.sum_of_squares),
        ({name: drawn.values for name, drawn in together.elements.items()}, {n: d.values for n, d in alone.elements.items()}),
    ):
        assert list(ours) == list(theirs)
        for name, values in ours.items():
            torch.testing.assert_close(values, theirs[name], rtol=1e-12, atol=1e-20)


@pytest.mark.parametrize("clipped", [False, True])
def test_each_is_checked_against_its_own_gradient(clipped: bool) -> None:
    found = statistics(False, clipped, penalty=0.1)
    assert list(found.not_covered) == ["1.weight"]
    assert "1.bias" in found.squared_norms


def test_what_is_kept_of_a_vector_keeps_nothing_larger_alive() -> None:
    large = torch.randn(6, 100)
    assert Dense(large).alone().values is large
    kept: Tensor = Dense(large[:, :3]).alone().values
    assert kept.untyped_storage().nbytes() == kept.nbytes
    assert kept.equal(large[:, :3])
