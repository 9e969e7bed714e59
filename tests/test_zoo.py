"""The zoo is what it says it is: else everything that is compared on it proves nothing."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from tests import reference
from tests.zoo import ZOO, Architecture

everything = pytest.mark.parametrize("architecture", ZOO.values(), ids=ZOO.keys())
independent = pytest.mark.parametrize("architecture", [a for a in ZOO.values() if not a.interacts], ids=lambda a: a.name)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_is_large_enough() -> None:
    assert len(ZOO) >= 30


@everything
def test_is_small(architecture: Architecture) -> None:
    assert 0 < sum(parameter.numel() for parameter in architecture.build().parameters()) < 20_000


@everything
def test_is_reproducible_and_leaves_the_global_generator_alone(architecture: Architecture) -> None:
    state = torch.get_rng_state()
    first, second = architecture.build(seed=1), architecture.build(seed=1)
    batches = architecture.batch(4, generator()), architecture.batch(4, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(batches[0].inputs, batches[1].inputs, strict=True))


@everything
def test_which_parameters_are_trained(architecture: Architecture) -> None:
    model = architecture.build()
    architecture.loss(model, architecture.batch(6, generator())).backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert bool(unused) == architecture.unused
    assert bool(frozen) == architecture.frozen
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


@everything
def test_draws_random_numbers_only_where_it_says_so(architecture: Architecture) -> None:
    model, batch = architecture.build(), architecture.batch(6, generator())
    state = torch.get_rng_state()
    architecture.loss(model, batch).backward()
    assert torch.equal(torch.get_rng_state(), state) != architecture.dropout


@everything
def test_can_be_differentiated_twice_where_it_says_so(architecture: Architecture) -> None:
    model, batch = architecture.build(), architecture.batch(6, generator())
    parameters = list(reference.trainable(model).values())

    def second_derivative() -> None:
        first = torch.autograd.grad(architecture.loss(model, batch), parameters, create_graph=True, materialize_grads=True)
        torch.autograd.grad(sum(values.pow(2).sum() for values in first), parameters, allow_unused=True)

    if architecture.no_double_backward:
        with pytest.raises(RuntimeError, match=r"derivative for|is not implemented|incompatible with"):
            second_derivative()
    else:
        second_derivative()


@independent
def test_single_losses_and_contributions_add_up(architecture: Architecture) -> None:
    """The single-sample loop is a reference for the batch only if this holds."""
    model = architecture.build(dtype=torch.float64).eval()
    batch = architecture.batch(5, generator(), torch.float64)
    losses = torch.stack([architecture.loss(model, sample).detach() for sample in architecture.samples(batch)])
    loss = architecture.loss(model, batch).detach()
    torch.testing.assert_close(losses @ architecture.weights(batch), loss, rtol=1e-12, atol=1e-14)
    whole = reference.gradient(architecture, model, batch)
    for name, values in reference.contributions(architecture, model, batch).items():
        assert values.shape == (5, *whole[name].shape)
        torch.testing.assert_close(values.sum(0), whole[name], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if a.interacts], ids=lambda a: a.name)
def test_interacting_samples_have_no_single_loss(architecture: Architecture) -> None:
    model, batch = architecture.build(), architecture.batch(4, generator())
    changed = copy.deepcopy(batch)
    for tensor in changed.inputs:
        tensor[0] += 1.0
    with torch.no_grad():  # another first sample changes the outputs of the others
        assert not torch.equal(model(*batch.inputs)[1:], model(*changed.inputs)[1:])
    with pytest.raises(ValueError, match="interact"):
        architecture.sample(batch, 0)


def test_no_reference_with_batch_statistics() -> None:
    architecture = ZOO["resnet_batch_norm"]
    with pytest.raises(ValueError, match="eval"):
        reference.contributions(architecture, architecture.build(), architecture.batch(3, generator()))


@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if a.dropout and not a.batch_norm], ids=lambda a: a.name)
def test_contributions_add_up_with_noise(architecture: Architecture) -> None:
    model, batch = architecture.build(dtype=torch.float64), architecture.batch(5, generator(), torch.float64)
    state = torch.get_rng_state()
    contributions = reference.contributions(architecture, model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    for name, values in reference.gradient(architecture, model, batch).items():
        torch.testing.assert_close(contributions[name].sum(0), values, rtol=1e-10, atol=1e-13)


def test_hessian_of_a_quadratic_is_known() -> None:
    architecture = ZOO["linear_regression"]
    model, batch = architecture.build(), architecture.batch(9, generator())
    x = torch.cat((batch.inputs[0], torch.ones(9, 1)), 1).double()
    block = 2 / (9 * 3) * x.T @ x  # mean over 9 samples and 3 outputs
    hessian = reference.hessian(architecture, model, batch)
    weight, bias = torch.arange(21).view(3, 7), torch.arange(21, 24)
    for output in range(3):
        rows = torch.cat((weight[output], bias[output : output + 1]))
        torch.testing.assert_close(hessian[rows][:, rows], block)
    assert torch.linalg.matrix_norm(hessian).item() == pytest.approx(3**0.5 * torch.linalg.matrix_norm(block).item())


def test_batch_size_tests_by_hand() -> None:
    """Two samples whose gradients are (3, 1) and (1, -1): G = (2, 0), deviations (1, 1) and (-1, -1)."""
    gradients = torch.tensor([[3.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    assert reference.variance(gradients) == pytest.approx(4.0)
    assert reference.norm_test(gradients) == pytest.approx(math.sqrt(2.0) / 2)
    assert reference.inner_product_test(gradients) == pytest.approx(math.sqrt((4 + 4) / 2) / 4)
    assert reference.orthogonality_test(gradients) == pytest.approx(math.sqrt((1 + 1) / 2) / 2)
    assert reference.noise_scale(gradients) == pytest.approx(4.0 / (4.0 - 2.0))
