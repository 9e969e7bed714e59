"""Norm, inner-product and orthogonality test against their definitions, which sum over the samples one by one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cockpit_lite import Instrument, NotMeasured, Reading
from cockpit_lite.instruments import InnerProductTest, NormTest, OrthogonalityTest
from tests import reference
from tests.instruments.samples import gradients, step_with

TESTS = [NormTest, InnerProductTest, OrthogonalityTest]


def value(reading: Any) -> float:
    return float(reading.value if isinstance(reading, Reading) else reading)


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("samples", [2, 7, 64])
def test_against_the_definition(instrument: type[Instrument], spread: float, samples: int) -> None:
    g = gradients(samples, spread=spread)
    expected = getattr(reference, instrument.name)(g)
    assert value(instrument().measure(step_with(g))[instrument.name]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
def test_samples_that_agree_leave_nothing_to_test(instrument: type[Instrument]) -> None:
    g = gradients(1).repeat(5, 1)
    assert value(instrument().measure(step_with(g))[instrument.name]) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
def test_the_scale_of_the_loss_does_not_matter(instrument: type[Instrument]) -> None:
    one, other = (value(instrument().measure(step_with(scale * gradients()))[instrument.name]) for scale in (1.0, 1e3))
    assert one == pytest.approx(other)


def test_the_norm_test_is_the_two_others_together() -> None:
    """Noise along the gradient and at right angles to it add up to the whole."""
    step = step_with(gradients())
    norm, along, across = (value(instrument().measure(step)[instrument.name]) for instrument in TESTS)
    assert norm**2 == pytest.approx(along**2 + across**2)


def test_noise_along_the_gradient_is_seen_by_the_inner_product_test_only() -> None:
    g = torch.tensor([[1.0], [3.0]], dtype=torch.float64) * gradients(1)
    step = step_with(g)
    assert value(InnerProductTest().measure(step)["inner_product_test"]) == pytest.approx(0.5)
    assert value(OrthogonalityTest().measure(step)["orthogonality_test"]) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
def test_a_gradient_of_zero_is_no_finite_number(instrument: type[Instrument]) -> None:
    g = torch.cat([gradients(4), -gradients(4)])
    g = torch.cat([g, -g])
    assert not math.isfinite(value(instrument().measure(step_with(g * 0))[instrument.name]))


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
def test_one_sample_has_no_variance(instrument: type[Instrument]) -> None:
    with pytest.raises(NotMeasured, match="the batch holds one sample"):
        instrument().measure(step_with(gradients(1)))


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
def test_a_parameter_that_is_not_covered_is_named(instrument: type[Instrument]) -> None:
    step = step_with(gradients())
    step.per_sample.not_covered["head.weight"] = "it is used twice"
    with pytest.raises(NotMeasured, match=r"the per-sample gradients of head\.weight are not covered: it is used twice"):
        instrument().measure(step)


@pytest.mark.parametrize("instrument", TESTS, ids=lambda instrument: instrument.name)
def test_batch_normalisation_is_said(instrument: type[Instrument]) -> None:
    reading = instrument().measure(step_with(gradients(), conditional=True))[instrument.name]
    assert isinstance(reading, Reading) and reading.kind == "conditional" and "batch statistics" in str(reading.note)
    assert not isinstance(instrument().measure(step_with(gradients()))[instrument.name], Reading)
