"""Properties of the forms: whatever the shapes, they agree with the gradients they stand for, and these sum to the gradient."""

from __future__ import annotations

import gc
import weakref
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cockpit_lite.probes.per_sample.forms import (
    Dense,
    Form,
    OuterProducts,
    Rows,
    Side,
    Sums,
    Windows,
    add,
    outer_products,
    windows,
)
from cockpit_lite.probes.per_sample.forms import form as base
from cockpit_lite.probes.per_sample.forms.form import RankOne
from tests.per_sample.checker import watched

SIZE = st.integers(1, 5)


def outer(generator: torch.Generator, n: int, groups: int, positions: int, fan_in: int, fan_out: int) -> OuterProducts:
    """Return random outer products."""
    return OuterProducts(
        torch.randn(n, groups, positions, fan_in, generator=generator, dtype=torch.float64),
        torch.randn(n, groups, positions, fan_out, generator=generator, dtype=torch.float64),
        torch.Size((groups * fan_out, fan_in)),
    )


def table(generator: torch.Generator, n: int, entries: int, shape: tuple[int, int]) -> Rows:
    """Return random rows of a table."""
    return Rows(
        torch.randint(n, (entries,), generator=generator),
        torch.randint(shape[0], (entries,), generator=generator),
        torch.randn(entries, shape[1], generator=generator, dtype=torch.float64),
        n,
        torch.Size(shape),
    )


def agree(form: Form) -> None:
    """Compare norms and products of a form with its gradients."""
    gradients = form.gradients()
    assert gradients.shape == (form.batch_size, *form.shape)
    direction = torch.randn(form.shape, dtype=torch.float64)
    torch.testing.assert_close(form.squared_norms(), gradients.flatten(1).square().sum(1))
    torch.testing.assert_close(form.products(direction), (gradients * direction).flatten(1).sum(1))
    torch.testing.assert_close(form.sum_of_squares(), gradients.square().sum(0))
    left, right = torch.randn(form.shape[0], dtype=torch.float64), torch.randn(form.shape[1:].numel(), dtype=torch.float64)
    several = ([], [direction], [direction, -2 * direction])
    rank_one = RankOne(left, right)
    if len(form.shape) > 2:  # a kernel: nearly always the factors are known
        torch.testing.assert_close(form.measure(along=rank_one).along, gradients.flatten(2) @ right @ left)
        channels, places = torch.randn(form.shape[1], dtype=torch.float64), tuple(torch.randn(form.shape[2:].numel()).tolist())
        factored = torch.outer(channels, torch.tensor(places, dtype=torch.float64)).flatten()
        rank_one = RankOne(left, factored, (channels, places))
    for directions, along, squares in product(several, (None, rank_one), (False, True)):
        measured = form.measure(directions, along, squares)
        torch.testing.assert_close(measured.norms, gradients.flatten(1).square().sum(1))
        assert len(measured.products) == len(directions)
        for towards, found in zip(directions, measured.products, strict=True):
            torch.testing.assert_close(found, (gradients * towards).flatten(1).sum(1))
        assert (measured.along is not None) == (along is not None)
        if along is not None:
            matrices = gradients.reshape(-1, len(along.left), len(along.right))
            torch.testing.assert_close(measured.along, matrices @ along.right @ along.left)
        assert (measured.squares is not None) == squares
        if squares:
            torch.testing.assert_close(measured.squares, gradients.square().sum(0))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), SIZE, SIZE, st.integers(0, 9), SIZE, SIZE)
def test_every_form_agrees_with_its_gradients(seed: int, n: int, groups: int, positions: int, fan_in: int, fan_out: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = outer(generator, n, groups, positions, fan_in, fan_out)
    agree(first)
    agree(add([first, outer(generator, n, groups, 2, fan_in, fan_out)]))
    side = Side(first.deltas)
    bias = Sums(side)
    agree(bias)
    torch.testing.assert_close(bias.gradients(), first.deltas.sum(2).flatten(1))
    agree(OuterProducts(first.inputs, side, first.shape))  # what the bias has asked for changes nothing
    flat = outer(generator, n, 1, positions, fan_in, fan_out)
    rows = table(generator, n, positions, (fan_out, fan_in))
    agree(rows)
    for parts in ([flat, rows], [rows, rows], [flat, Dense(rows.gradients())]):
        total = add(parts)
        agree(total)
        torch.testing.assert_close(total.gradients(), parts[0].gradients() + parts[1].gradients())
    owners = torch.randint(3, (n,), generator=generator)
    for form in (first, rows, add([flat, rows]), Dense(rows.gradients())):
        folded = form.fold(owners, 3)
        agree(folded)
        expected = torch.zeros(3, *form.shape, dtype=torch.float64).index_add_(0, owners, form.gradients())
        torch.testing.assert_close(folded.gradients(), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_large_gradients_are_measured_one_by_one(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(outer_products, "LARGE", 1)
    agree(outer(generator, 4, groups, 30, 4, 3))
    assert outer(generator, 0, groups, 30, 4, 3).squared_norms().shape == (0,)


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(base, "CHUNK", 7)
    agree(outer(generator, 5, 2, 3, 4, 4))
    agree(outer(generator, 5, 2, 30, 4, 4))
    agree(add([outer(generator, 5, 1, 3, 4, 6), table(generator, 5, 12, (6, 4))]))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 999), st.integers(1, 6), st.lists(st.sampled_from(["linear", "conv", "norm", "twice"]), min_size=1, max_size=4)
)
def test_contributions_sum_to_the_gradient(seed: int, n: int, layers: list[str]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(seed)
            kinds = {
                "linear": lambda: nn.Linear(6, 6),
                "conv": lambda: nn.Conv1d(4, 4, 3, padding=1, groups=2),
                "norm": lambda: nn.LayerNorm(6),
                "twice": lambda: nn.Linear(6, 6),
            }
            self.layers = nn.ModuleList(kinds[layer]() for layer in layers)

        def forward(self, x: Tensor) -> Tensor:
            for kind, layer in zip(layers, self.layers, strict=True):
                x = x + layer(x).tanh()
                x = layer(x).sin() if kind == "twice" else x
            return x

    net = Net().double()
    inputs = torch.randn(n, 4, 6, dtype=torch.float64)
    statistics, gradient = watched(net, lambda: net(inputs).square().mean())
    assert not statistics.not_covered
    for name, along in statistics.products.items():
        torch.testing.assert_close(along.sum(), gradient[name].square().sum())


@pytest.mark.parametrize("form", ["dense", "outer products"])
def test_long_rows_keep_their_digits(form: str) -> None:
    inputs, deltas = torch.randn(2, 1, 9, 1200), torch.randn(2, 1, 9, 1500)
    exact = (deltas.double().transpose(-1, -2) @ inputs.double()).reshape(2, 1500, 1200)
    made = OuterProducts(inputs, deltas, exact.shape[1:]) if form == "outer products" else Dense(exact.float())
    direction = exact.sum(0)
    measured = made.measure([direction.float()], squares=form == "dense")
    torch.testing.assert_close(measured.norms.double(), exact.flatten(1).square().sum(1), rtol=2e-6, atol=0)
    torch.testing.assert_close(measured.products[0].double(), exact.flatten(1) @ direction.flatten(), rtol=2e-6, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 999),
    st.integers(1, 3),
    st.sampled_from([(9,), (6, 7), (4, 3, 5)]),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.booleans(),
)
def test_windows_agree_with_their_gradients_by_both_ways(
    seed: int,
    n: int,
    size: tuple[int, ...],
    groups: int,
    kernel: int,
    stride: int,
    dilation: int,
    zeros: tuple[int, int],
    by_pixels: bool,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    axes = len(size)
    convolution = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    images = torch.randn(n, 2 * groups, *(max(length, dilation * (kernel - 1) + 1) for length in size), dtype=torch.float64)
    layer = convolution(2 * groups, 3 * groups, kernel, stride, 0, dilation, groups, bias=False).double()
    padded = nn.functional.pad(images, zeros * axes)
    deltas = torch.randn(layer(padded).shape, generator=generator, dtype=torch.float64)
    form = Windows(images, deltas, layer.stride, layer.dilation, groups, layer.weight.shape, [zeros] * axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Windows, "_pixels_are_few", lambda _: by_pixels)
        patch.setattr(windows, "FEW_PAIRS", 10**9 if by_pixels else 0)
        agree(form)
    (weight,) = torch.autograd.grad(layer(padded), layer.weight, deltas)
    torch.testing.assert_close(form.gradients().sum(0), weight)


def test_forms_of_images_are_gone_when_nobody_has_them() -> None:
    images = torch.randn(2, 3, 5, 5)
    seen = weakref.ref(images)
    form = Windows(images, torch.randn(2, 4, 3, 3), (1, 1), (1, 1), 1, torch.Size((4, 3, 3, 3)))
    form.measure(squares=True)
    gc.disable()
    try:
        del images, form
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_products_of_some_samples_are_theirs(every: int) -> None:
    torch.manual_seed(0)
    samples, shape = 6, torch.Size((4, 3, 2, 2))
    forms: list[Form] = [
        Dense(torch.randn(samples, 3, 5)),
        Sums(Side(torch.randn(samples, 4))),
        OuterProducts(Side(torch.randn(samples, 3)), Side(torch.randn(samples, 4)), torch.Size((4, 3))),
        OuterProducts(torch.randn(samples, 2, 6, 3), torch.randn(samples, 2, 6, 4), torch.Size((8, 3))),
        Windows(torch.randn(samples, 3, 5, 5), torch.randn(samples, 4, 5, 5), (1, 1), (1, 1), 1, shape, [(1, 0), (0, 1)]),
        Rows(torch.tensor([0, 1, 1, samples - 1]), torch.tensor([2, 0, 2, 1]), torch.randn(4, 3), samples, torch.Size((5, 3))),
    ]
    for form in forms:
        first, second = torch.randn(2, *form.shape)
        expected = form.measure([first, second])
        found = form.measure_towards({"": first, "named": second}, some=samples // every)
        assert torch.allclose(found.products[0], expected.products[0], rtol=1e-4, atol=1e-5), form
        assert torch.allclose(found.products[1], expected.products[1][::every], rtol=1e-4, atol=1e-5), form
        assert torch.allclose(found.norms, expected.norms)


def test_products_with_the_sum_need_no_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, deltas = (torch.randn(5, features, generator=generator, dtype=torch.float64) for features in (30, 20))
    form = OuterProducts(inputs, deltas, torch.Size((20, 30)))
    assert form.sum_is_quick()
    torch.testing.assert_close(form.products_with_sum(), form.products(form.gradients().sum(0)))
    assert not OuterProducts(inputs[:, :4], deltas[:, :4], torch.Size((4, 4))).sum_is_quick()
    assert not outer(generator, 5, 1, 2, 30, 20).sum_is_quick()


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_products_without_the_gradient_are_checked_against_it(penalty: float) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(30, 20).double(), torch.randn(5, 30, dtype=torch.float64)
    statistics, gradient = watched(model, lambda: model(inputs).square().sum() + penalty * model.weight.square().sum())
    assert list(statistics.not_covered) == (["weight"] if penalty else [])
    if not penalty:
        contributions = 2 * model(inputs).detach()[:, :, None] * inputs[:, None]
        torch.testing.assert_close(statistics.products["weight"], (contributions * gradient["weight"]).sum((1, 2)))
    assert set(statistics.products) == set(statistics.squared_norms)
