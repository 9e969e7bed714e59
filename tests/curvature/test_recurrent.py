from __future__ import annotations

import pytest
import torch
from torch import _VF, Tensor, nn

from cockpit_lite.curvature.recurrent import SequenceFunction, twin

VARIANTS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without bias": {"bias": False},
    "two layers, both directions": {"num_layers": 2, "bidirectional": True},
}


def derivatives(layer: nn.LSTM, given: list[Tensor]) -> list[Tensor]:
    """Return outputs, first derivatives and their products with random directions."""
    inputs, hidden, cell = given
    options = layer.bias, layer.num_layers, 0.0, True, layer.bidirectional, layer.batch_first
    outputs = lstm(inputs, (hidden, cell), layer._flat_weights, *options)
    sought = [*given, *layer.parameters()]
    torch.manual_seed(1)
    loss = sum((output * torch.randn_like(output) + output**3).sum() for output in outputs)
    slopes = torch.autograd.grad(loss, sought, create_graph=True)
    directions = [torch.randn_like(slope) for slope in slopes]
    return [*outputs, *slopes, *torch.autograd.grad(slopes, sought, directions)]


lstm = _VF.lstm


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("times", [1, 4])
def test_the_twin_has_the_derivatives_of_the_original(variant: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 5, **VARIANTS[variant]).double()
    directions = (2 if layer.bidirectional else 1) * layer.num_layers
    shape = (2, times, 3) if layer.batch_first else (times, 2, 3)
    given = [torch.randn(size).double().requires_grad_() for size in (shape, (directions, 2, 5), (directions, 2, 5))]
    expected = derivatives(layer, given)
    monkeypatch.setitem(globals(), "lstm", twin(_VF.lstm, SequenceFunction.apply))
    torch.testing.assert_close(derivatives(layer, given), expected, rtol=1e-9, atol=1e-11)


def test_packed_sequences_are_left_to_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.LSTM(3, 5)
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 3), torch.randn(2, 3)])
    expected = layer(packed)[0].data
    monkeypatch.setattr(_VF, "lstm", twin(_VF.lstm, SequenceFunction.apply))
    assert layer(packed)[0].data.equal(expected)
