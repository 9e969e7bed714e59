from __future__ import annotations

import math
import re

import pytest

from cockpit_lite.diagnosis.history import History
from cockpit_lite.diagnosis.step_size import IllConditioning, LearningRateTooHigh, LearningRateTooLow
from tests.diagnosis.histories import Level, falling, first_alert, history, level, readable

TOO_HIGH, TOO_LOW, ILL = LearningRateTooHigh(), LearningRateTooLow(), IllConditioning()


def suggested(advice: str) -> float:
    return float(re.findall(r"about ([\d.e+-]+\d)", advice)[0])


# Too high


def long_from(begin: int, ratio: float = 2.0) -> Level:
    return lambda step: ratio if step >= begin else 5e-3


def test_a_loss_that_is_thrown_up_and_stays_there() -> None:
    alert = first_alert(TOO_HIGH, 60, lambda step: 2.3 if step == 0 else 80.0, update_ratio=long_from(0), learning_rate=5.0)
    assert alert is not None and alert.step == 20 and "2 times" in alert.cause
    assert alert.evidence["limit of a plain step"] == 1.0
    assert alert.evidence["suggested learning rate"] == pytest.approx(0.25)
    assert suggested(alert.advice) == pytest.approx(0.25, rel=0.25)
    readable(alert)


def test_a_net_that_was_killed_by_the_first_steps() -> None:
    """The loss comes back to where it began and never below: dead units."""
    loss = lambda step: 2.3 if step == 0 else 900.0 / step**3 if step < 6 else 2.35  # noqa: E731
    alert = first_alert(TOO_HIGH, 60, loss, update_ratio=lambda step: 5.0 if step < 3 else 1e-4)
    assert alert is not None and alert.step == 30
    readable(alert)


def test_an_overflow_after_long_steps() -> None:
    loss = lambda step: (2.3, 1e9, math.inf)[step] if step < 3 else math.nan  # noqa: E731
    ratio = lambda step: math.nan if step > 2 else 1e6  # noqa: E731
    alert = first_alert(TOO_HIGH, 10, loss, update_ratio=ratio)
    assert alert is not None and alert.step == 2
    readable(alert)
    seen_late = TOO_HIGH.check(history(9, loss, update_ratio=ratio))
    assert seen_late is not None
    readable(seen_late)


def test_an_update_without_a_finite_norm() -> None:
    loss = lambda step: 2.3 if step == 0 else math.nan  # noqa: E731
    alert = first_alert(TOO_HIGH, 10, loss, update_ratio=lambda step: math.inf, without=("taylor_curvature_term",))
    assert alert is not None and "no finite norm" in alert.cause
    readable(alert)


def test_in_mid_run_the_level_before_it_counts() -> None:
    loss = lambda step: falling(2.3, 0.1)(step) if step < 200 else 1.5  # noqa: E731
    alert = first_alert(TOO_HIGH, 260, loss, update_ratio=long_from(199))
    assert alert is not None and 215 <= alert.step <= 222


def test_by_overshoot_alone_and_not_for_adam() -> None:
    case = dict(loss=lambda step: 2.3 if step < 5 else 9.0, taylor_curvature_term=0.1)
    assert first_alert(TOO_HIGH, 60, **case) is not None
    assert first_alert(TOO_HIGH, 60, **case, optimizers=("Adam",)) is None  # it takes other steps than the terms describe


def test_adam_by_its_update_ratio() -> None:
    alert = first_alert(
        TOO_HIGH, 60, lambda step: 2.3 if step == 0 else 100.0, update_ratio=4.0, optimizers=("Adam",), learning_rate=0.3
    )
    assert alert is not None and "limit of a plain step" not in alert.evidence
    assert suggested(alert.advice) == pytest.approx(0.3 * 1e-2 / 4.0, rel=0.5)
    readable(alert)


@pytest.mark.parametrize("missing", ["learning_rate", "curvature_along_gradient", "taylor_curvature_term"])
def test_fewer_readings_still_make_a_sentence(missing: str) -> None:
    alert = first_alert(TOO_HIGH, 60, lambda step: 2.3 if step == 0 else 80.0, update_ratio=2.0, without=(missing,))
    assert alert is not None
    readable(alert)


def catapult(step: int) -> float:
    """The loss grows for ten steps to fifty times its start, and falls below it within twenty."""
    return 2.3 * 1.48**step if step <= 10 else max(115 * 0.72 ** (step - 10), 0.3)


@pytest.mark.parametrize(
    "case",
    [
        dict(loss=falling(2.3, 0.1)),
        dict(loss=catapult, update_ratio=lambda step: 0.3 if step < 12 else 0.01),
        # edge of stability: the loss goes up and down around a falling trend, the terms hover
        dict(loss=lambda step: 2.3 * math.exp(-step / 60) * (1.3 if step % 2 else 0.8), taylor_curvature_term=0.024),
        # weights that start small or at zero: their first steps are long by nature
        dict(loss=falling(2.3, 0.3), update_ratio=lambda step: 1e37 if step == 0 else 1 / step),
        # ... on labels that cannot be learnt, so that the loss stays where it began
        dict(loss=level(2.3), update_ratio=lambda step: 1e37 if step == 0 else 1 / step),
        # a single spike in a run with noise
        dict(
            loss=lambda step: 8.0 if step == 90 else falling(2.3, 0.2)(step),
            update_ratio=lambda step: 0.4 if step == 89 else 0.01,
        ),
        # a negative log likelihood that is negative
        dict(loss=lambda step: -1.0 - step / 100, update_ratio=lambda step: 0.3 if step == 0 else 0.01),
        # one bad batch makes NaN: not the fault of a step long ago
        dict(
            loss=lambda step: math.nan if step >= 150 else falling(2.3, 0.3)(step),
            update_ratio=lambda step: 0.5 if step == 0 else 0.01,
        ),
        # NaN from a wrong operation: the update is NaN with it
        dict(loss=lambda step: math.nan if step >= 20 else 2.0, update_ratio=lambda step: math.nan if step >= 19 else 0.01),
    ],
    ids=["healthy", "catapult", "edge of stability", "zero init", "random labels", "spike", "negative", "late nan", "nan"],
)
def test_too_high_is_silent_on_controls(case: dict) -> None:
    assert first_alert(TOO_HIGH, 200, **case) is None


def test_an_exploding_gradient_is_another_fault() -> None:
    assert first_alert(TOO_HIGH, 60, lambda step: 1e4 * (step + 1), grad_norm=5e4, update_ratio=40.0) is None


@pytest.mark.parametrize("missing", ["loss", "update_ratio"])
def test_too_high_is_silent_without_readings(missing: str) -> None:
    assert first_alert(TOO_HIGH, 60, lambda step: 2.3 if step == 0 else 80.0, update_ratio=2.0, without=(missing,)) is None
    assert TOO_HIGH.check(History()) is None


# Too low

LOW = dict(loss=level(2.3, 0.01), update_ratio=2e-7, taylor_curvature_term=1e-9)


def test_nothing_moves() -> None:
    alert = first_alert(TOO_LOW, 120, **LOW, learning_rate=1e-5)
    assert alert is not None and alert.step == 50 and alert.severity == "warning"
    assert suggested(alert.advice) == pytest.approx(0.5, rel=1e-6)  # 1e-2 over 2e-7 is 5e4 times
    assert alert.evidence["suggested learning rate"] == pytest.approx(0.5)
    readable(alert)


def test_noise_excuses_a_short_step_around_a_minimum_but_not_where_the_loss_is_that_of_a_guess() -> None:
    noisy = {**LOW, "gradient_noise_scale": 400.0, "batch_size": 32.0, "learning_rate": 1e-5}
    assert first_alert(TOO_LOW, 120, **noisy) is None
    assert first_alert(TOO_LOW, 120, **noisy, loss_over_uniform=0.4) is None
    assert first_alert(TOO_LOW, 120, **noisy, loss_over_uniform=1.0) is not None


def test_a_long_step_that_kills_most_units_is_too_long_although_the_loss_comes_back() -> None:
    def loss(step: int) -> float:
        return 2.3 if step <= 10 else 14.0 if step < 14 else 1.5

    long_step = {"update_ratio": lambda step: 3.0 if step == 10 else 0.01}
    assert first_alert(TOO_HIGH, 80, loss, **long_step, dead_units=lambda step: 0.1) is None
    alert = first_alert(TOO_HIGH, 80, loss, **long_step, dead_units=lambda step: 0.1 if step <= 10 else 0.8)
    assert alert is not None and alert.step >= 40


@pytest.mark.parametrize(
    "case",
    [
        dict(loss=falling(2.3, 0.1), update_ratio=1e-3),
        {**LOW, "learning_rate": lambda step: 1e-6 * (step + 1)},  # warm-up
        {**LOW, "learning_rate": lambda step: 1e-4 * min(step + 1, 10_000) / 10_000},  # a very long one
        {**LOW, "learning_rate": lambda step: 0.1 * (1 + math.cos(math.pi * step / 120)) / 2},  # end of a schedule
        {**LOW, "learning_rate": lambda step: 0.1 if step < 20 else 1e-5},  # a drop on purpose
        {**LOW, "loss": lambda step: 2.3 - 0.01 * step},  # small steps that do their work
        {**LOW, "gradient_noise_scale": 900.0},  # fine-tuning around a minimum: noise
        {**LOW, "gradient_noise_scale": math.inf},
        {**LOW, "update_ratio": 0.0},  # the optimizer does not step: another fault
        {**LOW, "learning_rate": 0.0},
    ],
    ids=["healthy", "warm-up", "long warm-up", "cosine end", "drop", "small steps", "fine-tuning", "noise", "no step", "zero"],
)
def test_too_low_is_silent_on_controls(case: dict) -> None:
    assert first_alert(TOO_LOW, 121, **case) is None


@pytest.mark.parametrize("missing", ["loss", "update_ratio", "learning_rate"])
def test_too_low_is_silent_without_readings(missing: str) -> None:
    assert first_alert(TOO_LOW, 80, **LOW, without=(missing,)) is None
    assert TOO_LOW.check(History()) is None


def test_too_low_without_per_sample_statistics_or_curvature() -> None:
    alert = first_alert(TOO_LOW, 80, **LOW, without=("gradient_noise_scale", "taylor_curvature_term"))
    assert alert is not None
    readable(alert)


# Ill-conditioning

STEEP = dict(
    loss=lambda step: max(7.0 * 0.6**step, 0) + level(2.3, 0.01)(step), grad_norm=level(4.5), taylor_gradient_term=0.06,
    taylor_curvature_term=0.02, max_eigenvalue=400.0, hessian_trace=1000.0,
)  # fmt: skip


def test_steep_valley() -> None:
    alert = first_alert(ILL, 150, **STEEP)
    assert alert is not None and 60 <= alert.step <= 80 and "33% of" in alert.cause and "only 2.0% of it" in alert.cause
    readable(alert)


@pytest.mark.parametrize("without", [("max_eigenvalue", "hessian_trace"), ("gradient_noise_scale",)])
def test_steep_valley_with_fewer_readings(without: tuple[str, ...]) -> None:
    alert = first_alert(ILL, 150, **STEEP, without=without)
    assert alert is not None
    readable(alert)


def test_an_outlier_in_the_spectrum_makes_it_surer() -> None:
    plain, outlying = first_alert(ILL, 150, **STEEP), first_alert(ILL, 150, **{**STEEP, "hessian_trace": 600.0})
    assert plain is not None and outlying is not None
    assert outlying.confidence > plain.confidence and "67% of the Hessian trace" in outlying.cause


@pytest.mark.parametrize(
    "case",
    [
        {**STEEP, "loss": falling(2.3, 0.1)},
        {**STEEP, "loss": lambda step: 2.3 * 0.995**step},  # slow, but it falls
        {**STEEP, "loss": lambda step: 2.3 if step < 25 else level(1.4)(step)},  # has come down and converged
        {**STEEP, "grad_norm": lambda step: 4.5 * 0.98**step},  # the gradient falls: it arrives somewhere
        {**STEEP, "taylor_gradient_term": 0.6, "taylor_curvature_term": 0.2},  # noise: each batch could be fitted much better
        {**STEEP, "taylor_curvature_term": 0.002},  # short steps: no curvature in the way
        {**STEEP, "gradient_noise_scale": math.inf},
        {**STEEP, "update_ratio": 0.5},  # thrown there by a long step
    ],
    ids=["falls", "falls slowly", "converged", "arrives", "label noise", "short steps", "noise", "overshot"],
)
def test_ill_conditioning_is_silent_on_controls(case: dict) -> None:
    assert first_alert(ILL, 160, **case) is None


@pytest.mark.parametrize("missing", ["loss", "grad_norm", "taylor_gradient_term", "taylor_curvature_term"])
def test_ill_conditioning_is_silent_without_readings(missing: str) -> None:
    assert first_alert(ILL, 150, **STEEP, without=(missing,)) is None
    assert ILL.check(History()) is None


def test_it_says_why_it_has_nothing_to_say_about_adam() -> None:
    assert ILL.does_not_apply(History(optimizers=["SGD"])) == ""
    assert "Adam" in ILL.does_not_apply(History(optimizers=["Adam"]))
    assert first_alert(ILL, 150, **STEEP, optimizers=("Adam",)) is None
