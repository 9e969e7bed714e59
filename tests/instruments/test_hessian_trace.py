from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import SetupError
from cockpit_lite.instrument import Reading
from cockpit_lite.instruments.hessian_trace import HessianTrace
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import dense, forward
from tests.zoo import ZOO


def measure(curvature: Curvature, instrument: HessianTrace) -> Reading:
    step = Step(0, curvature.parameters)
    step.observed["curvature"] = curvature
    reading = instrument.measure(step)["hessian_trace"]
    assert isinstance(reading, Reading)
    return reading


@pytest.mark.parametrize("name", ["rnn", "frozen_and_unused"])
def test_lies_within_its_standard_error(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature()
    exact = dense(curvature.product, curvature.flat_gradient()).trace()
    reading = measure(curvature, HessianTrace(samples=30))
    assert reading.kind == "estimated"
    assert reading.standard_error is not None
    assert reading.standard_error > 0
    assert abs(reading.value - exact) < 4 * reading.standard_error


def test_fused_attention_is_measured_by_a_second_forward_and_says_so() -> None:
    watched = forward(ZOO["encoder_batch_first"])
    reading = measure(watched.curvature(forward=watched.call), HessianTrace())
    assert reading.note == "by a second forward pass"
    assert math.isfinite(float(reading.value))


def test_spends_as_many_products_as_samples() -> None:
    curvature = forward(ZOO["mlp"]).curvature()
    measure(curvature, HessianTrace(samples=3))
    assert curvature.products == 3


def test_is_exact_for_a_model_with_few_parameters() -> None:
    watched = forward(ZOO["tied_autoencoder"], torch.float64)
    reading = measure(watched.curvature(), HessianTrace(samples=59))
    assert (reading.kind, reading.standard_error) == ("exact", None)
    expected = reference.hessian(ZOO["tied_autoencoder"], watched.model, watched.batch).trace()
    torch.testing.assert_close(torch.as_tensor(reading.value), expected)


def test_a_linear_loss_has_trace_zero() -> None:
    weight = nn.Parameter(torch.ones(20))
    reading = measure(Curvature(weight.sum(), {"weight": weight}, torch.Generator()), HessianTrace())
    assert reading.value == 0


def test_what_is_not_finite_is_shown() -> None:
    weight = nn.Parameter(torch.ones(20))
    reading = measure(Curvature((weight**2).sum() * math.nan, {"weight": weight}, torch.Generator()), HessianTrace())
    assert math.isnan(float(reading.value))


def test_one_sample_is_enough_and_none_is_refused() -> None:
    reading = measure(forward(ZOO["mlp"]).curvature(), HessianTrace(samples=1))
    assert reading.standard_error is not None
    assert reading.standard_error > 0
    with pytest.raises(SetupError, match="at least 1"):
        HessianTrace(samples=0)
