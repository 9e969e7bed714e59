"""The float64 definitions that instruments are compared with, against autograd on a net small enough for dense matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev

from benchmarks.exact import exact, extreme_eigenvalues, maximum_likelihood_alpha


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(21, 4, generator=draw), torch.randint(3, (21,), generator=draw)


def dense_hessian(model: nn.Module) -> torch.Tensor:
    inputs, targets = batch()
    clone = model.double()
    names = {name: parameter.detach() for name, parameter in clone.named_parameters()}
    sizes = {name: value.numel() for name, value in names.items()}

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = dict(zip(names, flat.split(list(sizes.values())), strict=True))
        values = {name: part.view_as(names[name]) for name, part in parts.items()}
        return F.cross_entropy(functional_call(clone, values, (inputs.double(),)), targets)

    return jacrev(grad(loss))(torch.cat([value.reshape(-1) for value in names.values()]))


def test_sums_over_the_samples_give_the_batch() -> None:
    model, (inputs, targets) = net(), batch()
    direction = torch.randn(43, generator=torch.Generator().manual_seed(2))
    found = exact(model, inputs, targets, direction, bounds=[0.0, 1e9])
    loss = F.cross_entropy(model(inputs), targets)
    loss.backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).double()
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    assert torch.allclose(found.gradient, gradient, atol=1e-7)
    assert torch.allclose(found.products.mean(), found.gradient.square().sum())
    assert torch.allclose(found.slopes.mean(), direction.double() @ found.gradient)
    assert torch.allclose(found.squares.sum(), found.squared_norms.mean())
    assert (found.variance >= -1e-15).all()
    assert found.small == [0.0, 1.0] and sum(found.sizes) == 43


def test_curvature_is_that_of_the_dense_hessian() -> None:
    inputs, targets = batch()
    matrix = dense_hessian(net())
    assert torch.allclose(exact(net(), inputs, targets).curvature, matrix.diag(), atol=1e-12)
    values = torch.linalg.eigvalsh(matrix)
    largest, of_largest_magnitude = extreme_eigenvalues(net(), inputs, targets)
    assert largest == pytest.approx(values.max().item(), rel=1e-5)
    assert of_largest_magnitude == pytest.approx(values[values.abs().argmax()].item(), rel=1e-5)


def test_alpha_of_a_parabola_is_where_the_step_landed_on_it() -> None:
    inputs, targets = batch()
    point = exact(net(), inputs, targets, torch.ones(43))
    draw = torch.Generator().manual_seed(3)

    def seen(position: float) -> object:
        """Loss (position - 1)^2, noisy by sample, without noise in the mean; the direction has length 1."""
        noise = torch.randn(21, generator=draw).double()
        noise -= noise.mean()
        losses, slopes = (position - 1) ** 2 + noise, 2 * (position - 1) + 3 * noise
        return type(point)(**{**vars(point), "loss": (position - 1) ** 2, "losses": losses, "slopes": slopes})

    def landed(distance: float) -> float:
        start, end = seen(0.0), seen(distance)
        for point_seen in (start, end):  # slopes are along d, whose length is the distance
            vars(point_seen)["slopes"] *= distance
        return maximum_likelihood_alpha(start, end, distance)  # type: ignore[arg-type]

    assert landed(1.0) == pytest.approx(0.0, abs=1e-9)
    assert landed(2.0) == pytest.approx(1.0)
    assert landed(0.5) == pytest.approx(-0.5)
