from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from cockpit_lite.report import build_report
from cockpit_lite.report.story import _costs, _pieces, phases
from tests.report.cases import RULES, alert, record


def told(make_run, values, rates=None, folder="told"):
    run = make_run(steps=0, folder=folder)
    record(run, "loss", values)
    if rates is not None:
        record(run, "learning_rate", rates)
    return phases(run)


def noisy(values, spread=0.05, seed=0):
    random = np.random.default_rng(seed)
    return np.asarray(values) * np.exp(spread * random.standard_normal(len(values)))


def test_a_fall_a_plateau_and_a_rise_are_told_apart(make_run):
    course = np.concatenate([np.geomspace(2.0, 0.2, 200), np.full(500, 0.2), np.geomspace(0.2, 0.8, 300)])
    fall, plateau, rise = told(make_run, noisy(course))
    assert [phase.course for phase in (fall, plateau, rise)] == ["falls fast", "level", "rises"]
    assert plateau.first == pytest.approx(200, abs=30)
    assert rise.first == pytest.approx(700, abs=30)
    assert (fall.last + 1, plateau.last + 1, rise.last) == (plateau.first, rise.first, 999)
    assert fall.end == pytest.approx(0.2, rel=0.2)
    assert plateau.text == "The loss stays near 0.2."


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_story(make_run, seed):
    (only,) = told(make_run, noisy(np.full(1000, 2.3), 0.2, seed))
    assert only.course == "level"


def test_a_smooth_exponential_is_one_fall(make_run):
    (only,) = told(make_run, np.geomspace(3.0, 0.01, 400))
    assert only.course == "falls"
    assert (only.start, only.end) == pytest.approx((3.0, 0.01), rel=0.05)


def test_a_loss_below_zero_is_not_taken_to_logarithms(make_run):
    (only,) = told(make_run, np.linspace(5.0, -5.0, 100))
    assert only.course == "falls"
    assert only.end == pytest.approx(-5.0, abs=0.3)


def test_what_is_not_finite_to_the_end_is_a_phase_and_single_values_are_none(make_run):
    values = [1.0 if step != 20 else math.inf for step in range(60)] + [math.nan] * 5
    first, last = told(make_run, values)
    assert (first.course, first.first, first.last) == ("level", 0, 59)
    assert (last.text, last.first, last.last) == ("The loss is NaN.", 60, 64)
    (only,) = told(make_run, [math.nan] * 3, folder="nothing but NaN")
    assert (only.first, only.last, only.course) == (0, 2, "not finite")


def test_few_steps_have_a_beginning_and_an_end_only(make_run):
    assert [phase.text for phase in told(make_run, [3.0, 2.0, 1.0])] == ["The loss goes from 3 to 1."]
    assert [phase.text for phase in told(make_run, [3.0], folder="one")] == ["The loss is 3."]
    assert told(make_run, [], folder="none") == ()


def test_the_learning_rate_is_told_where_it_changes(make_run):
    course = noisy(np.concatenate([np.geomspace(5.0, 1.0, 200), np.full(200, 1.0), np.geomspace(1.0, 0.1, 200)]), 0.02)
    first, second, third = told(make_run, course, [0.1] * 400 + [0.01] * 200)
    assert first.text.endswith("at a learning rate of 0.1.")
    # The end of the plateau is known to within a stretch of steps: the jump is told on the one side of it or the other.
    assert ("from 0.1 to 0.01 at step 400." in second.text) != ("from 0.1 to 0.01 at step 400." in third.text)
    (only,) = told(make_run, np.geomspace(2.0, 1.0, 100), [0.1] * 50 + [0.01] * 50, folder="jump")
    assert only.text.endswith("while the learning rate goes from 0.1 to 0.01 at step 50.")
    (only,) = told(make_run, np.geomspace(2.0, 1.0, 100), np.linspace(0.1, 0.05, 100), folder="decay")
    assert only.text.endswith("while the learning rate goes from 0.1 to 0.05.")


def test_findings_stand_in_the_phase_in_which_they_were_made(make_run):
    run = make_run(steps=0, alerts=(alert(step=50), alert("CL902", "noise-dominates", "warning", 150)))
    record(run, "loss", noisy(np.concatenate([np.geomspace(2.0, 0.2, 100), np.full(200, 0.2)]), 0.02))
    first, second = build_report(run, RULES).phases
    assert (first.findings, second.findings) == (("loss-rises",), ("noise-dominates",))


def test_the_cost_of_a_piece_is_that_of_least_squares():
    height = np.random.default_rng(0).standard_normal(12) + 100.0
    costs = _costs(height)
    for start, end in itertools.combinations(range(13), 2):
        if end - start < 3:
            assert math.isinf(costs[start, end])
        else:
            x = np.arange(start, end)
            line = np.polyval(np.polyfit(x, height[start:end], 1), x)
            assert costs[start, end] == pytest.approx(float(((height[start:end] - line) ** 2).sum()), abs=1e-8)


def test_the_pieces_are_the_best_there_are():
    height = np.random.default_rng(3).standard_normal(11).cumsum()
    scatter, costs = 0.3, _costs(height)

    def score(cuts):
        ends = [0, *cuts, 11]
        rss = sum(costs[start, end] for start, end in itertools.pairwise(ends))
        return rss / scatter**2 + 3 * (len(cuts) + 1) * math.log(11)

    every = [cuts for number in range(5) for cuts in itertools.combinations(range(1, 11), number)]
    best = min(every, key=score)
    assert _pieces(height, scatter) == list(itertools.pairwise([0, *best, 11]))
