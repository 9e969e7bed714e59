from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from cockpit_lite.plots.course import BINS, MOST, RECENT, Course, Envelope, course
from cockpit_lite.plots.facts import broken_since, recent, scalars
from cockpit_lite.run import load_run
from cockpit_lite.run_log import RunWriter


def followed(steps: np.ndarray, values: np.ndarray, *ends: int) -> Course:
    """Return the course of a series that was looked at whenever it was as long as one of ``ends``, and at its end."""
    found = Course()
    for end in (*ends, len(steps)):
        found.update(steps[:end], values[:end], 0)
    return found


def slow_envelope(steps: np.ndarray, values: np.ndarray) -> Envelope:
    """Return the envelope by a loop over all points."""
    width = 1
    while (int(steps[-1]) - int(steps[0])) // width >= BINS:
        width *= 2
    rows = []
    for interval in sorted({(int(step) - int(steps[0])) // width for step in steps}):
        inside = [index for index, step in enumerate(steps) if (int(step) - int(steps[0])) // width == interval]
        finite = [float(values[index]) for index in inside if np.isfinite(values[index])]
        positive = [value for value in finite if value > 0]
        broken = [int(steps[index]) for index in inside if not np.isfinite(values[index])]
        below = [int(steps[index]) for index in inside if np.isfinite(values[index]) and values[index] <= 0]
        ends = (int(steps[inside[0]]), int(steps[inside[-1]]))
        low_high = (min(finite, default=np.nan), max(finite, default=np.nan), min(positive, default=np.nan))
        rows.append((*ends, *low_high, broken[0] if broken else -1, below[0] if below else -1))
    return Envelope(*(np.array(column) for column in zip(*rows, strict=True)))


def random_series(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    steps = np.cumsum(random.integers(1, 9, count))
    values = random.standard_normal(count)
    values[random.integers(0, count, count // 50)] = np.nan
    values[random.integers(0, count, count // 50)] = np.inf
    return steps, values


def assert_same(one: Envelope, other: Envelope) -> None:
    for field in fields(Envelope):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.mark.parametrize("count", [1, 7, 1_000, 3_000])
def test_the_envelope_is_that_of_a_loop_over_all_points(count: int) -> None:
    steps, values = random_series(max(count, 50))
    steps, values = steps[:count], values[:count]
    assert_same(followed(steps, values).envelope, slow_envelope(steps, values))


def test_how_a_series_grew_makes_no_difference() -> None:
    steps, values = random_series(60_000)
    at_once, grown = followed(steps, values), followed(steps, values, 1, 2, 900, 901, 20_000, 20_500, 59_999)
    assert_same(at_once.envelope, grown.envelope)
    for one, other in zip(at_once.sample, grown.sample, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_spike_of_one_step_and_a_single_nan_are_seen() -> None:
    values = np.ones(1_000_000)
    values[123_456], values[777_777] = 50.0, np.nan
    envelope = followed(np.arange(1_000_000), values).envelope
    assert BINS / 2 <= len(envelope.first) <= BINS
    assert envelope.high.max() == 50.0
    assert envelope.broken[envelope.broken >= 0].tolist() == [777_777]
    joined = envelope.joined(3)
    assert len(joined.first) == -(-len(envelope.first) // 3)
    assert joined.high.max() == 50.0
    assert (joined.first[0], joined.last[-1]) == (0, 999_999)
    assert joined.broken[joined.broken >= 0].tolist() == [777_777]


@pytest.mark.parametrize("every", [1, 2, 7, 10, 64, 1_000])
def test_a_sample_is_evenly_spread_whatever_the_schedule(every: int) -> None:
    steps = np.arange(100_000) * every
    sample, values = followed(steps, steps.astype(float)).sample
    body, gaps = sample[:-RECENT], np.diff(sample[:-RECENT])
    assert MOST / 8 <= len(body) <= MOST / 2
    assert gaps.max() <= 4 * gaps.mean()
    np.testing.assert_array_equal(sample, values)
    np.testing.assert_array_equal(sample[-RECENT:], steps[-RECENT:])


def test_the_same_steps_are_taken_of_readings_that_miss_some() -> None:
    steps = np.arange(200_000)
    measured = steps[np.random.default_rng(0).random(len(steps)) > 0.01]
    one, other = followed(steps, steps * 1.0).sample[0], followed(measured, measured * 1.0).sample[0]
    assert len(np.intersect1d(one, other)) > 0.95 * len(other) - RECENT


def test_what_was_written_again_is_read_again() -> None:
    steps = np.arange(20_000)
    found = followed(steps, np.ones(20_000))
    found.update(steps, np.full(20_000, 2.0), 1)
    assert found.envelope.low.min() == 2.0 and found.sample[1].min() == 2.0


def test_steps_may_be_any_numbers() -> None:
    low, high = np.iinfo(np.int64).min + 1, np.iinfo(np.int64).max
    envelope = followed(np.array([low, -5, 0, high]), np.arange(4.0)).envelope
    assert (envelope.first[0], envelope.last[-1]) == (low, high)


def written(folder: Path, losses: np.ndarray) -> RunWriter:
    writer = RunWriter(folder, {})
    writer.block(list(range(len(losses))), {"loss": losses.tolist()})
    writer.flush()
    return writer


def test_facts_of_a_long_run_are_exact_about_its_end(tmp_path: Path) -> None:
    losses = np.random.default_rng(0).random(3 * MOST)
    losses[-100:] = np.nan
    losses[-101] = 0.25
    writer = written(tmp_path / "run", losses)
    run = load_run(writer.folder)
    assert len(scalars(run, "loss")[0]) < MOST < len(run.series("loss")[0])
    assert broken_since(run, "loss")[0] == 3 * MOST - 100  # type: ignore[index]
    writer.step(3 * MOST, {"loss": 0.5})
    writer.close()
    run.refresh()
    assert recent(run, "loss", 1) == 0.5
    assert scalars(run, "loss")[0][-1] == 3 * MOST


def test_a_course_follows_its_run_and_short_ones_have_none(tmp_path: Path) -> None:
    writer = written(tmp_path / "run", np.ones(MOST))
    run = load_run(writer.folder)
    assert course(run, "loss") is None and course(run, "nothing") is None
    writer.step(MOST, {"loss": 3.0})
    writer.flush()
    run.refresh()
    found = course(run, "loss")
    assert found is not None and found.envelope.high.max() == 3.0
    writer.step(5, {"loss": 9.0})  # an earlier step again
    writer.close()
    run.refresh()
    assert course(run, "loss") is found and found.envelope.high.max() == 9.0
