"""The scales of a model's inputs against numbers of each feature by itself."""

from __future__ import annotations

import math

import pytest
import torch

from cockpit_lite.instruments import inputs as module
from cockpit_lite.instruments.inputs import by_feature, feature_ratios, moments


@pytest.mark.parametrize("at_once", [1, 40, 2**16])
@pytest.mark.parametrize("shape", [(20, 6), (8, 5, 6), (4, 3, 5, 5)], ids=str)
def test_moments_are_those_of_each_feature(shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ELEMENTS_AT_ONCE", at_once)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 - 1
    axis = 1 if len(shape) == 4 else -1
    columns = [column.flatten().tolist() for column in inputs.unbind(axis)]
    means = [sum(column) / len(column) for column in columns]
    deviations = [
        math.sqrt(sum((value - mean) ** 2 for value in column) / len(column)) for column, mean in zip(columns, means, strict=True)
    ]
    found = moments(by_feature(inputs))
    assert found.mean.tolist() == pytest.approx(means)
    assert found.deviation.tolist() == pytest.approx(deviations)
    assert found.largest.tolist() == pytest.approx([max(map(abs, column)) for column in columns])
    assert found.scale.item() == pytest.approx(inputs.double().square().mean().sqrt().item(), rel=1e-12)


def test_features_that_never_vary_are_left_out_of_the_ratios() -> None:
    rows = torch.tensor([[1.0, 5.0, 20.0], [3.0, 5.0, 60.0]]).repeat(5, 1)
    spread, mean = feature_ratios(moments(rows))
    assert spread.item() == pytest.approx((1 + 0.9 * 19) / (1 + 0.1 * 19))  # quantiles of 1 and 20
    assert mean.item() == pytest.approx(2.0)
