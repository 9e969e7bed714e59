from __future__ import annotations

import itertools
import math

import pytest

from cockpit_lite.diagnosis.derived import BEST_GAIN, OVERSHOOT, PROPORTION, derived_readings, first_long_step, mostly_noise
from cockpit_lite.diagnosis.history import History


def made(values: list[float], name: str = "loss") -> History:
    history = History()
    for step, value in enumerate(values):
        history.add(2 * step, {name: value})
    return history


def test_readings_by_name_in_order() -> None:
    history = History()
    assert history.step == -1 and "loss" not in history and history.last("loss") is None and not history.values("loss")
    history.add(3, {"loss": 1.5, "batch_size": 64, "grad_hist_1d": [1, 2]})
    history.add_block([4, 5], {"loss": [1.0, math.nan], "learning_rate": [0.1, 0.1]})
    assert history.step == 5
    assert list(history.steps("loss")) == [3, 4, 5]
    assert list(history.values("loss"))[:2] == [1.5, 1.0] and math.isnan(history.values("loss")[2])
    assert history.last("batch_size") == 64.0 and history.last("learning_rate") == 0.1
    assert "grad_hist_1d" not in history  # arrays are not kept


def test_of_layers_the_last_measured_ones() -> None:
    history = History()
    history.add(0, {"grad_norm/a": 1.0, "grad_norm/b": 2.0})
    history.add(1, {"loss": 1.0})
    assert history.layers("grad_norm") == {"a": 1.0, "b": 2.0} and "grad_norm" in history
    history.add(2, {"grad_norm/b": 3.0})  # a has no gradient any more: its old one would be compared with the new ones
    assert history.layers("grad_norm") == {"b": 3.0}
    assert history.layers("update_ratio") == {}


def test_the_highest_value_is_a_number() -> None:
    history = made([1.0, 7.0, math.nan, math.inf, 3.0])
    assert history.highest("loss") == 7.0
    assert made([math.nan]).highest("loss") is None and History().highest("loss") is None
    assert made([-3.0, -2.0]).highest("loss") == -2.0


def test_the_first_value_is_found_and_each_is_looked_at_once() -> None:
    looked: list[float] = []

    def is_large(value: float) -> bool:
        looked.append(value)
        return value > 5

    history = made([1.0, 2.0])
    assert history.first("loss", is_large) is None
    assert history.first("loss", is_large) is None
    assert looked == [1.0, 2.0]
    history.add(10, {"loss": 9.0})
    history.add(12, {"loss": 1.0})
    assert history.first("loss", is_large) == 2
    looked.clear()
    assert history.first("loss", is_large) == 2 and looked == [9.0]
    assert history.first("grad_norm", is_large) is None


def test_place_of_a_step() -> None:
    history = made([0.0] * 5)  # steps 0, 2, 4, 6, 8
    assert [history.place("loss", step) for step in (0, 1, 2, 8, 9)] == [0, 1, 1, 4, 5]
    assert history.place("grad_norm", 3) == 0


@pytest.mark.parametrize("length", [0, 1, 5, 59, 60, 119, 120, 121, 1000, 12_345])
def test_a_sample_is_bounded_even_and_ends_with_the_last(length: int) -> None:
    history = made([float(number) for number in range(length)])
    sample = history.sample("loss", count=60)
    assert len(sample) <= 120 and len(sample) >= min(length, 60)
    assert sample[-1:] == ([float(length - 1)] if length else [])
    assert len({later - earlier for earlier, later in itertools.pairwise(sample)}) <= 1
    late = history.sample("loss", begin=length)  # steps are twice the place: the second half
    assert all(value >= length / 2 for value in late)


def test_what_is_derived_from_a_row() -> None:
    row = {"taylor_gradient_term": 0.2, "taylor_curvature_term": 0.05}
    row.update({"grad_norm": 30.0, "update_size": 0.1, "update_ratio": 0.05})
    derived = derived_readings(row, gradient_steps=True)
    assert derived == pytest.approx({OVERSHOOT: 0.25, BEST_GAIN: 0.2, PROPORTION: 15.0})
    assert set(derived_readings(row, gradient_steps=False)) == {PROPORTION}  # Adam takes other steps than the terms describe
    assert derived_readings({}, gradient_steps=True) == {}
    downward = derived_readings({**row, "taylor_curvature_term": -0.1}, gradient_steps=True)
    assert downward[OVERSHOOT] == -0.5 and BEST_GAIN not in downward  # no best step where the loss bends down
    broken = {name: math.nan for name in row}
    assert derived_readings(broken, gradient_steps=True) == {}


def test_derived_readings_are_kept_beside_the_others() -> None:
    history = History(optimizers=["SGD"])
    history.add(7, {"taylor_gradient_term": 1.0, "taylor_curvature_term": 3.0})
    assert list(history.steps(OVERSHOOT)) == [7] and list(history.values(OVERSHOOT)) == [3.0]
    assert first_long_step(history) == 7


@pytest.mark.parametrize(
    ("optimizers", "known"), [(["SGD"], True), (["SGD", "SGD"], True), (["Adam"], False), ([], False), (["SGD", "AdamW"], False)]
)
def test_which_optimizers_step_along_the_gradient(optimizers: list[str], known: bool) -> None:
    assert History(optimizers=optimizers).gradient_steps is known


@pytest.mark.parametrize(("ratio", "long"), [(0.1, False), (0.3, True), (math.inf, True), (math.nan, False), (1e37, False)])
def test_a_long_step_is_long_by_a_known_ratio(ratio: float, long: bool) -> None:
    """NaN is another fault, and 1e37 is what weights at zero give."""
    assert (first_long_step(made([ratio], "update_ratio")) is not None) is long


def test_noise_is_known_only_where_it_was_measured() -> None:
    history = History()
    assert not mostly_noise(history)
    for step in range(5):
        history.add(step, {"gradient_noise_scale": 640.0, "batch_size": 64.0})
    assert mostly_noise(history)
    for step in range(5, 12):
        history.add(step, {"gradient_noise_scale": 64.0, "batch_size": 64.0})
    assert not mostly_noise(history)
    for step in range(12, 40):
        history.add(step, {"gradient_noise_scale": math.inf, "batch_size": 64.0})
    assert mostly_noise(history)
