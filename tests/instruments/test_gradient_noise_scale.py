from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import Reading
from cockpit_lite.instruments import GradientNoiseScale
from cockpit_lite.instruments.gradient_noise_scale import noise_scale, power_of_two
from cockpit_lite.transfer import HostTransfer, Row
from tests import reference
from tests.instruments.samples import gradients, step_with


def readings_of(instrument: GradientNoiseScale, g: torch.Tensor, conditional: bool = False) -> Row:
    """Measure a step and bring its readings to the host."""
    row = Row(0, {})
    row.put(instrument.measure(step_with(g, conditional)))
    (ready,) = HostTransfer().submit(row)
    assert {*ready.values, *ready.reasons} == set(instrument.readings)
    assert ready.values["batch_size"] == len(g)
    return ready


def measure(instrument: GradientNoiseScale, g: torch.Tensor, conditional: bool = False) -> tuple[float, float, str]:
    row = readings_of(instrument, g, conditional)
    how = row.how["gradient_noise_scale"]
    return row.values["gradient_noise_scale"], how.get("standard_error", math.nan), how["kind"]


@pytest.mark.parametrize("samples", [2, 7, 64])
def test_one_batch_against_the_definition(samples: int) -> None:
    g = gradients(samples, spread=0.3)
    value, error, kind = measure(GradientNoiseScale(), g)
    assert value == pytest.approx(reference.noise_scale(g), rel=1e-9)
    assert error == math.inf and kind == "estimated"  # one batch says nothing about its own error


def test_numerator_and_denominator_are_averaged_apart() -> None:
    """A long window weighs all batches alike."""
    batches = [gradients(8, spread=0.5, seed=seed) for seed in range(6)]
    instrument = GradientNoiseScale(window=300)
    for g in batches:
        value, _, _ = measure(instrument, g)
    noise = [reference.variance(g) for g in batches]
    signal = [g.mean(0).pow(2).sum().item() - reference.variance(g) / 8 for g in batches]
    assert value == pytest.approx(np.mean(noise) / np.mean(signal), rel=1e-4)


def test_a_window_forgets() -> None:
    instrument = GradientNoiseScale(window=10)
    for _ in range(10):
        measure(instrument, gradients(8, spread=1.0))
    for _ in range(10):
        value, _, _ = measure(instrument, gradients(8, spread=0.1))
    assert value == pytest.approx(reference.noise_scale(gradients(8, spread=0.1)), rel=1e-9)


def test_a_blown_up_first_step_does_not_count() -> None:
    """Its squares would outweigh those of all other steps of the window."""
    instrument, calm = GradientNoiseScale(), GradientNoiseScale()
    measure(instrument, 100 * gradients(8, spread=10.0, seed=99))
    for seed in range(5):
        g = gradients(8, spread=0.5, seed=seed)
        value, error, _ = measure(instrument, g)
        expected, expected_error, _ = measure(calm, g)
        assert (value, error) == pytest.approx((expected, expected_error), rel=1e-9)


def test_a_step_that_is_not_finite_is_shown_and_forgotten() -> None:
    instrument, calm = GradientNoiseScale(), GradientNoiseScale()
    for seed in range(3):
        measure(instrument, gradients(8, seed=seed, spread=0.5))
        measure(calm, gradients(8, seed=seed, spread=0.5))
    assert math.isnan(measure(instrument, gradients(8) * math.nan)[0])
    assert math.isnan(measure(instrument, gradients(8) * math.inf)[0])
    g = gradients(8, seed=3, spread=0.5)
    assert measure(instrument, g)[:2] == pytest.approx(measure(calm, g)[:2], rel=1e-12)


def drawn(instrument: GradientNoiseScale, steps: int, generator: torch.Generator, samples: int = 16) -> dict[str, float]:
    """Measure steps of samples that are drawn around the mean (1, ..., 1) / 3 of 11 elements: a noise scale of 9."""
    for left in range(steps, 0, -1):
        g = 1 / 3 + torch.randn(samples, 11, generator=generator, dtype=torch.float64)
        if left > 1:  # a step counts once one of its readings is on the host
            reading = instrument.measure(step_with(g))["gradient_noise_scale"]
            assert isinstance(reading, Reading) and isinstance(reading.value, torch.Tensor) and reading.on_host is not None
            reading.on_host(reading.value.tolist())
    row = readings_of(instrument, g)
    return row.values | {"error": row.how["gradient_noise_scale"]["standard_error"]}


TRUE = 9.0


def test_the_standard_error_falls_with_the_root_of_the_number_of_steps() -> None:
    errors = {}
    for steps in (20, 80, 320):
        found = [drawn(GradientNoiseScale(320), steps, torch.Generator().manual_seed(seed))["error"] for seed in range(8)]
        errors[steps] = np.mean(found)
    assert errors[20] / errors[80] == pytest.approx(2, rel=0.15)
    assert errors[80] / errors[320] == pytest.approx(2, rel=0.1)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held, errors, widths = 0, [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        found = drawn(GradientNoiseScale(), 40, generator)
        held += found["suggested_batch_size_lower"] <= TRUE <= found["suggested_batch_size_upper"]
        errors.append((found["gradient_noise_scale"] - TRUE) / found["error"])
        widths.append(found["suggested_batch_size_upper"] / found["suggested_batch_size_lower"])
    assert 0.88 <= held / 100 <= 0.99
    assert np.std(errors) == pytest.approx(1, abs=0.2)
    assert np.median(widths) < 2


def test_an_interval_without_an_upper_end() -> None:
    """Two samples a step, and noise a hundred times the signal: all that can be said is that larger batches would help."""
    generator = torch.Generator().manual_seed(1)
    instrument = GradientNoiseScale()
    for _ in range(12):
        values = readings_of(instrument, 0.03 + torch.randn(2, 11, generator=generator, dtype=torch.float64)).values
    assert 1 < values["suggested_batch_size_lower"] < 1 / 0.03**2
    assert values["suggested_batch_size_upper"] == math.inf


@pytest.mark.parametrize("seed", range(5))
def test_fieller_against_its_definition(seed: int) -> None:
    """The ends are where numerator - R denominator is as far from zero as nine values have 95 % within: 2.306 of its errors."""
    rows = np.random.default_rng(seed).normal(size=(9, 2)) @ [[1.0, 0.3], [0.2, 0.5]] + [5.0, 2.0]
    full = np.column_stack([np.ones(9), rows])
    found = noise_scale((full.T @ full).tolist())
    covariance = np.cov(rows.T) / 9
    assert found.value == pytest.approx(np.divide(*rows.mean(0)))
    slope = np.array([1, -found.value]) / rows[:, 1].mean()
    assert found.standard_error == pytest.approx(math.sqrt(slope @ covariance @ slope), rel=1e-9)
    assert found.lower < found.value < found.upper
    for end in (found.lower, found.upper):
        contrast = np.array([1.0, -end])
        assert abs(contrast @ rows.mean(0)) == pytest.approx(2.306 * math.sqrt(contrast @ covariance @ contrast), rel=5e-3)


def test_the_suggestion_is_a_power_of_two() -> None:
    values = [0.0, 0.3, 1.0, 1.4, 1.5, 9.0, 12.0, 500.0, 1.7e308, math.inf]
    assert list(map(power_of_two, values)) == [1, 1, 1, 1, 2, 8, 16, 512, 2.0**1023, math.inf]
    assert drawn(GradientNoiseScale(), 40, torch.Generator().manual_seed(0))["suggested_batch_size"] == 8


def test_it_finds_the_noise_scale_of_the_population_within_its_error() -> None:
    """Samples drawn from one distribution: trace of their covariance over squared norm of their mean, D / ||mean||^2."""
    elements, generator = 11, torch.Generator().manual_seed(0)
    mean = torch.randn(elements, generator=generator, dtype=torch.float64)
    true = elements / mean.pow(2).sum().item()
    instrument = GradientNoiseScale(window=300)
    for _ in range(300):
        value, error, _ = measure(instrument, mean + torch.randn(16, elements, generator=generator, dtype=torch.float64))
    assert 0 < error < 0.1 * true
    assert abs(value - true) < 4 * error


def test_samples_without_a_gradient() -> None:
    row = readings_of(GradientNoiseScale(), torch.zeros(4, 11, dtype=torch.float64))
    assert list(row.values) == ["batch_size"]
    assert len(row.reasons) == 4 and set(row.reasons.values()) == {"the gradient is zero in every sample"}


def test_a_batch_of_one() -> None:
    with pytest.raises(NotMeasured, match="one sample"):
        GradientNoiseScale().measure(step_with(gradients(1)))


def test_noise_that_drowns_the_gradient_is_infinite() -> None:
    g = gradients(4, spread=1.0)
    value, error, _ = measure(GradientNoiseScale(), g - g.mean(0))
    assert value == error == math.inf


def test_batch_normalisation_is_said() -> None:
    assert measure(GradientNoiseScale(), gradients(), conditional=True)[2] == "conditional"
