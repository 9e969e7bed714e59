from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cockpit_lite.probes.moments import Moments, moments, pooled, stacked


def check(values: Tensor, tolerance: float) -> None:
    found, exact = moments(values), values.double()
    assert found.count == values.numel()
    assert float(found.mean) == pytest.approx(exact.mean().item(), rel=tolerance, abs=tolerance * float(exact.std()))
    assert float(found.variance) == pytest.approx(exact.var(correction=0).item(), rel=tolerance)


@pytest.mark.parametrize("offset", [0.0, 3.0, 40.0, 1e3])
@pytest.mark.parametrize("count", [7, 1_000, 300_000])
def test_against_float64(offset: float, count: int) -> None:
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)) + offset
    check(values, 1e-5 if offset < 100 else 1e-4)
    check(values.double(), 1e-11)


def test_long_outputs_lose_no_digits() -> None:
    """A scalar product in one go is off by 1e-3 here."""
    check(torch.randn(30_000_000, generator=torch.Generator().manual_seed(0)) + 1, 2e-6)


def test_any_layout() -> None:
    values = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    for view in (
        values.to(memory_format=torch.channels_last),
        values.transpose(0, 2),
        values[:, ::2],
        values[:1].expand(7, 3, 5, 6),
    ):
        check(view, 1e-5)


def test_constants_and_what_is_not_finite() -> None:
    assert moments(torch.full((10_000,), 0.1)).variance == pytest.approx(0.0, abs=1e-14)
    assert moments(torch.zeros(5)) == Moments(5, 0.0, 0.0)
    for bad in (torch.nan, torch.inf):
        assert torch.tensor(moments(torch.tensor([1.0, bad])).variance).isnan()


def test_pooled_calls() -> None:
    parts = [torch.randn(size, generator=torch.Generator().manual_seed(size)) + size for size in (3, 20, 7)]
    exact = torch.cat(parts).double()
    found = pooled([moments(part) for part in parts])
    assert found.count == 30
    assert found.mean == pytest.approx(exact.mean().item(), rel=1e-6)
    assert found.variance == pytest.approx(exact.var(correction=0).item(), rel=1e-6)


def test_numbers_and_scalars_are_stacked() -> None:
    assert stacked([]).shape == (0,)
    assert stacked([0.1, 2.0]).tolist() == [0.1, 2.0]
    assert stacked([torch.tensor(0.5), 2.0]).tolist() == [0.5, 2.0]
    pooled_tensors = pooled([Moments(1, torch.tensor(1.0), torch.tensor(0.0)), Moments(3, torch.tensor(5.0), torch.tensor(2.0))])
    assert stacked([pooled_tensors.mean, pooled_tensors.variance]).tolist() == [4.0, 4.5]
