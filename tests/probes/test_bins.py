"""Symmetric logarithmic bins against numpy's search among the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cockpit_lite.probes.bins import SymmetricBins, counted

BINS = [SymmetricBins(-10, 4, 2), SymmetricBins(-4, 1, 1), SymmetricBins(-1, 1, 3)]


@pytest.mark.parametrize("bins", BINS)
def test_edges_are_symmetric_and_grow_by_equal_factors(bins: SymmetricBins) -> None:
    edges = bins.edges()
    assert len(edges) == bins.count - 1
    torch.testing.assert_close(edges, -edges.flip(0))
    positive = edges[len(edges) // 2 :]
    assert (positive[0].item(), positive[-1].item()) == pytest.approx((10.0**bins.low, 10.0**bins.high))
    torch.testing.assert_close(positive[1:] / positive[:-1], torch.full_like(positive[1:], 10 ** (1 / bins.per_decade)))


@pytest.mark.parametrize("bins", BINS)
@given(st.floats(-300, 300, allow_nan=False), st.sampled_from([-1.0, 1.0]))
def test_a_number_is_between_the_edges_of_its_bin(bins: SymmetricBins, exponent: float, sign: float) -> None:
    value = sign * 10.0 ** (exponent / 10)
    index = int(bins.index(torch.tensor([value], dtype=torch.float64)))
    distance = np.abs(np.abs(bins.edges().numpy()) / abs(value) - 1).min()
    if distance > 1e-9:  # at an edge rounding decides
        assert index == np.digitize(value, bins.edges().numpy())


@pytest.mark.parametrize("bins", BINS)
def test_what_is_no_common_number(bins: SymmetricBins) -> None:
    values = torch.tensor([0.0, -0.0, 1e-45, math.inf, -math.inf, 3e38, math.nan])
    middle, last = bins.count // 2, bins.count - 1
    assert bins.index(values).tolist() == [middle, middle, middle, last, 0, last, bins.count]


def test_counting() -> None:
    index = torch.tensor([[0, 3, 3], [1, 3, 0]])
    assert counted(index, 5).tolist() == [2, 1, 0, 3, 0]
