"""Norms, inner products and ratios of long tensors, gone through in pieces, against float64; and what is made once a step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from cockpit_lite.norms import PIECE, difference_norm, difference_norms, in_pieces, parameter_norms, total_norm
from cockpit_lite.packed import packed
from cockpit_lite.probes.last_step import inner_product
from cockpit_lite.probes.noise import DAMPING, damped_ratios
from cockpit_lite.step import Step

LENGTHS = [1, PIECE, PIECE + 1, 40 * PIECE + 7]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", LENGTHS)
def test_norms_of_long_tensors_are_as_precise_as_those_of_short_ones(length: int) -> None:
    tensors = {"short": drawn(3), "long": drawn(length, seed=1)}
    norms = parameter_norms(tensors)
    assert list(norms) == list(tensors)
    for name, tensor in tensors.items():
        # torch.linalg.vector_norm is off by 1.3e-4 over 5 million elements
        assert norms[name].item() == pytest.approx(tensor.double().norm().item(), rel=3e-6)
    whole = torch.cat([tensor.double() for tensor in tensors.values()]).norm().item()
    assert total_norm(norms).item() == pytest.approx(whole, rel=3e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_inner_products_of_long_tensors(length: int) -> None:
    left, right = drawn(length).abs(), drawn(length, seed=1).abs()
    expected = torch.dot(left.double(), right.double()).item()
    assert inner_product({"a": left}, {"a": right}).item() == pytest.approx(expected, rel=3e-6)


def test_inner_products_of_what_is_not_plain_float32() -> None:
    a = torch.tensor([1.0, 0.0, -2.0])
    assert inner_product({"a": a.half()}, {"a": a}).item() == 5
    assert inner_product({"a": a.to_sparse()}, {"a": a}).item() == 5
    assert inner_product({"a": a.double()}, {"a": a.double()}).dtype == torch.float64
    assert inner_product({"a": a}, {"b": a}).item() == 0
    transposed = drawn(4, 3).T
    assert inner_product({"a": transposed}, {"a": transposed}).item() == pytest.approx(transposed.square().sum().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrapped", [dict, packed])
def test_the_norm_of_a_difference(dtype: torch.dtype, wrapped: Any) -> None:
    """Of short tensors and of one of several pieces, packed or not."""
    ends = [{"a": drawn(3, 5), "long": drawn(2, PIECE + 7), "b": drawn(4)} for _ in range(2)]
    here, there = (
        {name: (scale * value).to(dtype) for name, value in end.items()} for scale, end in zip((1, 3), ends, strict=True)
    )
    found = difference_norm(wrapped(here), wrapped(there))
    expected = math.sqrt(sum((value - there[name]).double().square().sum().item() for name, value in here.items()))
    assert found.item() == pytest.approx(expected, rel=1e-3 if dtype == torch.float16 else 1e-5)
    assert difference_norm(here, {"b": there["b"]}).item() == pytest.approx((here["b"] - there["b"]).norm().item(), rel=1e-3)
    norms = difference_norms(here, wrapped({name: there[name] for name in ("long", "a")}))
    assert list(norms) == ["long", "a"]
    for name, norm in norms.items():
        assert norm.item() == pytest.approx((here[name].double() - there[name].double()).norm().item(), rel=1e-3)


def test_pieces_put_together_are_the_tensor() -> None:
    tensor = drawn(3, PIECE)
    assert len(in_pieces(tensor)) == 3 and len(in_pieces(tensor[0])) == 1
    assert torch.equal(torch.cat(list(in_pieces(tensor))), tensor.reshape(-1))


@pytest.mark.parametrize("length", [5, PIECE + 3])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_signal_to_noise_with_both_variances(length: int, scale: float) -> None:
    samples = (scale * (drawn(6, length) + 0.5)).double()  # g_n
    samples[:, 0] = scale  # they agree: no variance, and rounding may push the difference below zero
    gradient, variance = samples.mean(0), samples.var(0, correction=0)
    contributions = samples / 6
    found = damped_ratios(gradient.float(), contributions.square().sum(0).float(), 6)
    population = (gradient.square() / (variance + DAMPING)).sum()
    sample = (gradient.square() / (samples.var(0, correction=1) + DAMPING)).sum()
    expected = (pytest.approx(population.item(), rel=1e-4), pytest.approx(sample.item(), rel=1e-4))
    if scale == 1e3:  # the element without variance is all rounding: N s - G^2 of numbers near 1e6, beside a damping of 1e-5
        clean = damped_ratios(gradient[1:].float(), contributions.square().sum(0)[1:].float(), 6)
        expected_clean = (gradient[1:].square() / (variance[1:] + DAMPING)).sum().item()
        assert clean.population.item() == pytest.approx(expected_clean, rel=1e-3)
        assert torch.isfinite(found.population) and found.population >= 0
    else:
        assert (found.population.item(), found.sample.item()) == expected


def test_what_several_ask_for_is_made_once_and_forgotten_with_the_step() -> None:
    step = Step(0, {})
    step.observed["gradient"] = {"a": torch.tensor([3.0, 4.0])}
    made = []

    def make(step: Step) -> int:
        made.append(step.index)
        return len(made)

    assert [step.once(make), step.once(make)] == [1, 1] and made == [0]
    assert step.gradient_norms["a"].item() == 5 and step.gradient_norms is step.gradient_norms
    step.forget()
    assert step.once(make) == 2 and step.observed == {}


def test_norms_of_an_update_that_nobody_asks_for_are_taken_without_it() -> None:
    made = []

    def update(now: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
        made.append(True)
        return {name: now[name] - before[name] for name in before}

    steps = [Step(0, {}), Step(1, {})]
    for step in steps:
        step.observed["update"] = partial(update, {"a": torch.tensor([4.0, 2.0])}, {"a": torch.tensor([1.0, -2.0])})
    assert steps[0].update_norms["a"].item() == 5 and not made
    assert steps[0].update["a"].tolist() == [3, 4] and steps[0].update is steps[0].update and len(made) == 1
    assert steps[1].update["a"].tolist() == [3, 4]
    assert steps[1].update_norms["a"].item() == 5 and len(made) == 2
