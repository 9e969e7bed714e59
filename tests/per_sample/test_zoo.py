"""The whole zoo against the float64 loop: exact, or named."""

from __future__ import annotations

import copy

import pytest
import torch

from cockpit_lite.probes.per_sample import PerSampleProbe
from cockpit_lite.probes.per_sample import early as early_module
from tests import reference
from tests.per_sample.checker import relative_error, watched
from tests.zoo import ZOO

#: Parameters that are not covered in eval mode, and why they cannot be or are not yet.
NOT_COVERED = {
    "graph_of_samples": {"first.weight", "first.bias"},  # samples interact: there is no gradient of one sample
    "physics_informed": {"net.0.weight", "net.2.weight", "net.4.weight"},  # the loss differentiates the net: used in backward
}


@pytest.mark.parametrize("size", [5, 6, 8])  # 6 and 8 are also numbers of positions: shapes alone would be misread
@pytest.mark.parametrize("name", ZOO)
def test_exact_or_named(name: str, size: int) -> None:
    architecture = ZOO[name]
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        model = architecture.build(dtype=dtype).eval()
        batch = architecture.batch(size, generator.manual_seed(0), dtype=dtype)
        statistics, _ = watched(model, lambda model=model, batch=batch: architecture.loss(model, batch))
        assert set(statistics.not_covered) == NOT_COVERED.get(name, set()), statistics.not_covered
        assert statistics.batch_size == architecture.size(batch)
        try:
            expected = reference.contributions(architecture, model, batch)
        except ValueError:
            assert architecture.interacts
            continue
        everything = sum(rows.square().sum() for rows in expected.values())
        for parameter in statistics.squared_norms:
            rows = expected[parameter].flatten(1) if expected[parameter].dim() > 1 else expected[parameter][:, None]
            if rows.square().sum() < torch.finfo(dtype).eps ** 2 * everything:
                continue  # nothing but rounding, e.g. a bias that a normalisation takes away
            squares, total = rows.square().sum(1), rows.sum(0)
            assert relative_error(statistics.squared_norms[parameter], squares) < tolerance, (parameter, dtype)
            scale = squares.sqrt() * total.norm()
            assert relative_error(statistics.products[parameter], rows @ total, scale) < tolerance, (parameter, dtype)
            elements = expected[parameter].square().sum(0)
            assert relative_error(statistics.sum_of_squares[parameter], elements) < tolerance, (parameter, dtype)


@pytest.mark.parametrize("name", ZOO)
def test_norms_alone_are_checked_against_the_gradient_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early_module, "KEPT", 0)
    architecture = ZOO[name]
    model = architecture.build().eval()
    batch = architecture.batch(5, torch.Generator().manual_seed(0))
    statistics, _ = watched(model, lambda: architecture.loss(model, batch), products=False)
    assert set(statistics.not_covered) == NOT_COVERED.get(name, set()), statistics.not_covered
    assert not statistics.products
    late, _ = watched(model, lambda: architecture.loss(model, batch))
    condensed, _ = watched(model, lambda: architecture.loss(model, batch), products=False, early=True)
    assert set(condensed.not_covered) == NOT_COVERED.get(name, set()), condensed.not_covered
    everything = sum(norms.sum() for norms in statistics.squared_norms.values())
    for parameter, norms in statistics.squared_norms.items():
        torch.testing.assert_close(condensed.squared_norms[parameter], norms, rtol=1e-4, atol=1e-9 * float(everything))
        squares = late.sum_of_squares[parameter]
        torch.testing.assert_close(condensed.sum_of_squares[parameter], squares, rtol=1e-4, atol=1e-9 * float(everything))


@pytest.mark.parametrize("name", ZOO)
def test_products_in_the_backward_pass_are_those_after_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = ZOO[name]
    model = architecture.build().eval()
    batch = architecture.batch(5, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    update = {key: torch.randn(p.shape, generator=draw, dtype=p.dtype) for key, p in reference.trainable(model).items()}
    late, _ = watched(model, lambda: architecture.loss(model, batch), directions={"update": update})
    monkeypatch.setattr(early_module, "KEPT", 0)
    soon, _ = watched(model, lambda: architecture.loss(model, batch), directions={"update": update}, one_backward=True)
    assert set(soon.not_covered) == NOT_COVERED.get(name, set()), soon.not_covered
    assert set(soon.products) == set(late.products)
    for found, expected in ((soon.products, late.products), (soon.along["update"], late.along["update"])):
        largest = max(float(values.abs().max()) for values in expected.values())
        for parameter, values in expected.items():
            torch.testing.assert_close(found[parameter], values, rtol=1e-4, atol=1e-6 * largest)


@pytest.mark.parametrize("name", ZOO)
def test_training_is_bit_identical(name: str) -> None:
    architecture = ZOO[name]
    model = architecture.build()
    twin = copy.deepcopy(model)
    probe = PerSampleProbe(model, reference.trainable(model))
    attributes = [set(vars(module)) for module in model.modules()]
    for step in range(2):
        batch = architecture.batch(5, torch.Generator().manual_seed(step))
        torch.manual_seed(step)
        statistics, _ = watched(model, lambda batch=batch: architecture.loss(model, batch), probe=probe)
        state = torch.get_rng_state()
        assert set(statistics.not_covered) == NOT_COVERED.get(name, set()), statistics.not_covered
        if architecture.batch_norm:
            assert set(statistics.conditional) == set(statistics.squared_norms)
        twin.zero_grad()
        torch.manual_seed(step)
        architecture.loss(twin, batch).backward()
        assert torch.equal(state, torch.get_rng_state())
        for (key, value), other in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.equal(value, other), key
        for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert (parameter.grad is None) == (other.grad is None), key
            assert parameter.grad is None or torch.equal(parameter.grad, other.grad), key
    assert attributes == [set(vars(module)) for module in model.modules()]
