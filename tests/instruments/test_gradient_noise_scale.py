from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cockpit_lite import Reading
from cockpit_lite.instruments import GradientNoiseScale
from tests import reference
from tests.instruments.samples import gradients, step_with


def measure(instrument: GradientNoiseScale, g: torch.Tensor, conditional: bool = False) -> tuple[float, float, str]:
    readings = instrument.measure(step_with(g, conditional))
    assert readings["batch_size"] == len(g)
    reading = readings["gradient_noise_scale"]
    assert isinstance(reading, Reading) and reading.standard_error is not None
    return float(reading.value), float(reading.standard_error), reading.kind


@pytest.mark.parametrize("samples", [2, 7, 64])
def test_one_batch_against_the_definition(samples: int) -> None:
    g = gradients(samples, spread=0.3)
    value, error, kind = measure(GradientNoiseScale(), g)
    assert value == pytest.approx(reference.noise_scale(g), rel=1e-9)
    assert error == math.inf and kind == "estimated"  # one batch says nothing about its own error


def test_numerator_and_denominator_are_averaged_apart() -> None:
    """A long window weighs all batches alike."""
    batches = [gradients(8, spread=0.5, seed=seed) for seed in range(6)]
    instrument = GradientNoiseScale(window=10**6)
    for g in batches:
        value, _, _ = measure(instrument, g)
    noise = [reference.variance(g) for g in batches]
    signal = [g.mean(0).pow(2).sum().item() - reference.variance(g) / 8 for g in batches]
    assert value == pytest.approx(np.mean(noise) / np.mean(signal), rel=1e-4)


def test_a_short_window_forgets() -> None:
    instrument = GradientNoiseScale(window=2)
    for _ in range(3):
        measure(instrument, gradients(8, spread=30.0))
    for _ in range(40):
        value, _, _ = measure(instrument, gradients(8, spread=0.1))
    assert value == pytest.approx(reference.noise_scale(gradients(8, spread=0.1)), rel=1e-3)


def test_it_finds_the_noise_scale_of_the_population_within_its_error() -> None:
    """Samples drawn from one distribution: trace of their covariance over squared norm of their mean, D / ||mean||^2."""
    elements, generator = 11, torch.Generator().manual_seed(0)
    mean = torch.randn(elements, generator=generator, dtype=torch.float64)
    true = elements / mean.pow(2).sum().item()
    instrument = GradientNoiseScale(window=10**6)
    for _ in range(300):
        value, error, _ = measure(instrument, mean + torch.randn(16, elements, generator=generator, dtype=torch.float64))
    assert 0 < error < 0.1 * true
    assert abs(value - true) < 4 * error


def test_noise_that_drowns_the_gradient_is_infinite() -> None:
    g = gradients(4, spread=1.0)
    value, error, _ = measure(GradientNoiseScale(), g - g.mean(0))
    assert value == error == math.inf


def test_batch_normalisation_is_said() -> None:
    assert measure(GradientNoiseScale(), gradients(), conditional=True)[2] == "conditional"
