from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from cockpit_lite.diagnosis.series import finite, median, rank_correlation, slope_per_place, spread
from cockpit_lite.diagnosis.wording import in_words, share_in_words


def test_only_numbers_count() -> None:
    values = [3.0, math.nan, 1.0, math.inf, 2.0, -math.inf]
    assert finite(values) == [3.0, 1.0, 2.0]
    assert median(values) == 2.0
    assert math.isnan(median([])) and math.isnan(median([math.nan]))
    assert spread([1.0, 4.0, 2.0]) == 3.0 and spread([]) == 0.0


@pytest.mark.parametrize("count", [2, 5, 24, 25, 100])
def test_the_slope_is_not_moved_by_outliers(count: int) -> None:
    values = [0.5 * place for place in range(count)]
    assert slope_per_place(values) == pytest.approx(0.5)
    if count >= 5:
        values[1] = 1000.0
        assert slope_per_place(values) == pytest.approx(0.5, rel=0.3)
    assert slope_per_place(values[:1]) == 0.0 and slope_per_place([]) == 0.0


def test_the_slope_of_few_values_is_theil_and_sens() -> None:
    generator = random.Random(3)
    values = [generator.gauss(0, 1) for _ in range(15)]
    assert slope_per_place(values) == pytest.approx(stats.theilslopes(values).slope)


def test_rank_correlation_is_spearmans() -> None:
    generator = random.Random(4)
    for _ in range(5):
        values = [generator.gauss(0, 1) for _ in range(12)]
        assert rank_correlation(values) == pytest.approx(stats.spearmanr(range(12), values).statistic)
    assert rank_correlation([1, 2, 3]) == 1.0 and rank_correlation([3, 2, 1]) == -1.0
    assert rank_correlation([2.0, 2.0, 2.0, 2.0]) == pytest.approx(0.0) and rank_correlation([1.0]) == 0.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.2345, "1.23"), (0.0, "0"), (math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "minus infinity")],
)
def test_numbers_in_words(value: float, text: str) -> None:
    assert in_words(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.37, "37% of"), (1.0, "100% of"), (0.00012, "0.0001 of"), (3.14159, "3.14 times"), (math.inf, "infinitely many times")],
)
def test_shares_in_words(value: float, text: str) -> None:
    assert share_in_words(value) == text
