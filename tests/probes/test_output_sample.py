from __future__ import annotations

import pytest
import torch

from cockpit_lite.probes.output_sample import MOST_ROWS, MOST_UNITS, Sampler


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((6, 3, 7), 1), ((6, 7, 3), -1), ((2, 3, 4, 5), -3)])
def test_a_small_output_is_all_there(shape: tuple[int, ...], axis: int) -> None:
    values = torch.randn(shape)
    rows = Sampler().take(values, axis)
    assert torch.equal(rows, values.movedim(axis, -1).reshape(-1, 3))
    assert rows.untyped_storage().data_ptr() != values.untyped_storage().data_ptr()


def test_a_large_output_is_sampled_at_places_that_stay() -> None:
    """Every number carries its place."""
    sample, unit, row, column = torch.meshgrid(*map(torch.arange, (50, 300, 8, 9)), indexing="ij")
    values = (unit * 1_000_000 + sample * 100 + row * 10 + column).double()
    rows = Sampler().take(values, 1)
    assert rows.shape == (MOST_ROWS, MOST_UNITS)
    units, places = rows // 1_000_000, rows % 1_000_000
    assert (units == units[0]).all()
    assert (places == places[:, :1]).all()
    assert len(units[0].unique()) == MOST_UNITS
    assert len(places[:, 0].unique()) == MOST_ROWS
    assert len((places[:, 0] // 100).unique()) == 50  # of every sample
    assert torch.equal(rows, Sampler().take(values, 1))


def test_the_users_random_numbers_stay() -> None:
    state = torch.get_rng_state()
    Sampler().take(torch.zeros(1000, 1000), 1)
    assert torch.equal(state, torch.get_rng_state())
