from __future__ import annotations

import math

import numpy as np
import pytest

from cockpit_lite.plots.limits import value_limits
from cockpit_lite.plots.numbers import MOST_POINTS, LogTicks, StepTicks, ValueTicks, averaged, decimate, percent, short, smooth


def test_a_short_series_is_not_decimated() -> None:
    steps, values = np.arange(MOST_POINTS), np.ones(MOST_POINTS)
    assert decimate(steps, values)[1] is values


def test_a_spike_of_one_step_survives_decimation() -> None:
    steps, values = np.arange(100_000), np.ones(100_000)
    values[54_321], values[77_777] = 1e6, -5.0
    few_steps, few = decimate(steps, values)
    assert len(few) <= MOST_POINTS
    assert few.max() == 1e6
    assert few.min() == -5.0
    assert abs(few_steps[few.argmax()] - 54_321) <= 2 * 100_000 / MOST_POINTS
    assert (few_steps[0], few_steps[-1]) == (0, 99_999)
    assert np.all(np.diff(few_steps) >= 0)


def test_a_stretch_of_nan_stays_a_gap_and_a_single_nan_hides_nothing() -> None:
    values = np.linspace(1.0, 2.0, 50_000)
    values[20_000:30_000] = np.nan
    values[40_001] = np.inf
    steps, few = decimate(np.arange(50_000), values)
    inside = (steps > 20_100) & (steps < 29_900)
    assert np.isnan(few[inside]).all()
    assert np.isfinite(few[~inside & ((steps < 19_900) | (steps > 30_100))]).all()


def test_steps_far_apart_are_decimated_too() -> None:
    steps = np.concatenate([np.arange(3_000), [10_000_000]])
    few_steps, few = decimate(steps, np.sin(steps))
    assert few_steps[-1] == 10_000_000
    assert few.max() > 0.99


def test_smoothing_keeps_a_level_and_its_ends() -> None:
    assert smooth(np.full(500, 3.0)) == pytest.approx(3.0)
    assert smooth(np.full(500, 3.0), log=True) == pytest.approx(3.0)


def test_smoothing_removes_noise_and_not_the_course() -> None:
    course = np.exp(-np.linspace(0, 3, 2_000))
    noisy = course * np.exp(0.3 * np.random.default_rng(0).standard_normal(2_000))
    error = np.abs(np.log(smooth(noisy, log=True) / course))
    assert error.max() < 0.2
    assert error.mean() < 0.06


def test_averages_are_of_neighbours_and_a_group_of_nothing_is_a_gap() -> None:
    values = np.exp(np.random.default_rng(0).standard_normal(1_003))
    values[100:105] = np.nan
    values[7] = np.inf
    steps, means = averaged(np.arange(1_003), values, 250, log=True)
    groups = [[value for value in values[first : first + 5] if np.isfinite(value)] for first in range(0, 1_003, 5)]
    assert means == pytest.approx([np.exp(np.mean(np.log(group))) if group else np.nan for group in groups], nan_ok=True)
    assert np.isnan(means[20])
    assert steps.tolist() == [*range(4, 1_000, 5), 1_002]


def test_smoothing_passes_over_what_is_not_finite() -> None:
    values = np.full(200, 2.0)
    values[50], values[51], values[52] = np.nan, np.inf, -1.0
    smoothed = smooth(values, log=True)
    assert np.isnan(smoothed[50:53]).all()
    assert smoothed[49] == pytest.approx(2.0)
    assert smoothed[53] == pytest.approx(2.0)


@pytest.mark.parametrize("low", [1e-12, 3.3e-5, 0.09, 0.5, 2.0, 950.0])
@pytest.mark.parametrize("factor", [1.1, 1.6, 4.0, 30.0, 1e3, 1e9, 1e30])
def test_a_logarithmic_axis_always_has_a_few_ticks(low: float, factor: float) -> None:
    ticks = LogTicks().tick_values(low, low * factor)
    assert 2 <= len(ticks) <= 8
    assert all(low * 0.999 <= tick <= low * factor * 1.001 for tick in ticks)
    assert len({short(tick, 4) for tick in ticks}) == len(ticks)


@pytest.mark.parametrize("last", [1, 2, 9, 77, 1_000, 123_456, 1_000_000])
def test_steps_are_whole_and_few(last: int) -> None:
    ticks = StepTicks().tick_values(-0.015 * last, 1.015 * last)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] == 0
    assert all(tick == int(tick) for tick in ticks)


def test_values_have_ticks_inside_the_view_only() -> None:
    ticks = ValueTicks().tick_values(0.013, 0.987)
    assert 2 <= len(ticks) <= 6
    assert 0.013 <= min(ticks) < max(ticks) <= 0.987


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "1"), (64.0, "64"), (999.6, "1000"), (9_999.0, "9999"), (20_000.0, "20k"), (1e6, "1e6"), (-0.5, "-0.5"),
     (0.001, "0.001"), (0.00099, "9.9e-4"), (1e-7, "1e-7"), (math.inf, "Inf"), (-math.inf, "-Inf"), (math.nan, "NaN")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value, 4 if value == 9_999 else 3) == text


def test_percentages_are_short() -> None:
    assert [percent(share) for share in (0.0, 0.05, 1.0, 2.5)] == ["0 %", "5 %", "100 %", "250 %"]


def test_limits_hold_all_data_and_what_is_within_reach() -> None:
    low, high = value_limits([np.array([1.0, 2.0])], [2.5, 1e9], log=False)
    assert low < 1.0
    assert 2.5 < high < 3.0
    low, high = value_limits([np.array([1.0, 100.0])], [1_000.0, 1e-9], log=True)
    assert 0.1 < low < 1.0
    assert 1_000.0 < high < 1e4


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("values", [[], [5.0], [0.0], [1e-320, 1.7e308], [-1.7e308, 1.7e308]])
def test_limits_are_usable_whatever_the_data(values: list[float], log: bool) -> None:
    low, high = value_limits([np.array(values)], [], log)
    assert low < high
    assert math.isfinite(high - low)
    assert low > 0 or not log
