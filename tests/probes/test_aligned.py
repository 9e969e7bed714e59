from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.probes.loss_head import aligned as module
from cockpit_lite.probes.loss_head import find_loss_head
from cockpit_lite.probes.loss_head.aligned import aligned, output_kernels
from cockpit_lite.probes.loss_head.nodes import edge_of
from cockpit_lite.probes.sampled_curvature import SampledCurvature
from tests import reference
from tests.curvature.cases import dense

SAMPLES, FEATURES, UNITS, CLASSES = 12, 5, 130, 4


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(FEATURES, UNITS), nn.ReLU(), nn.Linear(UNITS, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES)]
    return nn.Sequential(*layers)


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, FEATURES, generator=draw), torch.arange(SAMPLES) % CLASSES


def roots_of(factors: Tensor, kernels: Tensor) -> Tensor:
    """Return R, which signs that are all zero but for one show column by column."""
    units = torch.eye(factors.shape[2], dtype=factors.dtype)
    return torch.stack([aligned(factors, kernels, unit.expand(factors.shape[:2])) for unit in units], 2)


@pytest.mark.parametrize("kernel", ["of some rank", "nothing passes", "as the factors", "tiny"])
def test_a_turned_root_is_a_root(kernel: str) -> None:
    draw = torch.Generator().manual_seed(0)
    factors = torch.randn(7, 5, 5, generator=draw, dtype=torch.float64)
    wide = torch.randn(7, 5, 3, generator=draw, dtype=torch.float64)
    kernels = {
        "of some rank": wide @ wide.mT,
        "nothing passes": torch.zeros_like(factors),
        "as the factors": torch.linalg.inv(factors @ factors.mT),
        "tiny": 1e-200 * wide @ wide.mT,
    }[kernel]
    roots = roots_of(factors, kernels)
    torch.testing.assert_close(roots @ roots.mT, factors @ factors.mT)


def test_turned_roots_make_the_kernel_nearly_diagonal() -> None:
    draw = torch.Generator().manual_seed(0)
    factors, wide = (torch.randn(50, 6, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    kernels = wide @ wide.mT

    def beside_the_diagonal(roots: Tensor) -> float:
        matrices = roots.mT @ kernels @ roots
        return float((matrices - torch.diag_embed(matrices.diagonal(dim1=1, dim2=2))).square().sum())

    assert beside_the_diagonal(roots_of(factors, kernels)) < 0.01 * beside_the_diagonal(factors)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cast", [torch.float32, torch.bfloat16])
def test_kernels_of_the_units_that_pass_something_on(bias: bool, cast: torch.dtype) -> None:
    model = network()
    model[4] = nn.Linear(UNITS, CLASSES, bias=bias)
    inputs, _ = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=cast is torch.bfloat16):
        hidden = model[:4](inputs)
        outputs = model[4](hidden)
    found = output_kernels(edge_of(outputs.float()))
    assert found is not None
    weight = model[4].weight.detach().to(cast).float()
    for sample, kernel in enumerate(found):
        active = [unit for unit in range(UNITS) if hidden[sample, unit] != 0]
        assert 0 < len(active) < UNITS
        torch.testing.assert_close(kernel, weight[:, active] @ weight[:, active].T)


def test_where_the_last_layer_says_nothing() -> None:
    model, (inputs, _) = network(), batch()
    assert output_kernels(edge_of(model(inputs))) is not None
    assert output_kernels(edge_of(model(inputs).relu())) is None
    assert output_kernels(edge_of(nn.Linear(FEATURES, CLASSES)(inputs))) is None  # nothing is behind it
    assert output_kernels(edge_of(nn.Linear(UNITS, 1)(model[:4](inputs)))) is None  # one direction
    many = nn.Linear(UNITS, module.MOST_OUTPUTS + 1)
    assert output_kernels(edge_of(many(model[:4](inputs)))) is None
    small = nn.Sequential(nn.Linear(FEATURES, 20), nn.ReLU(), nn.Linear(20, CLASSES))
    assert output_kernels(edge_of(small(inputs))) is None  # it would cost more than the network
    model[4].requires_grad_(False)
    assert output_kernels(edge_of(model(inputs))) is None  # of a frozen layer the graph keeps no inputs


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


def coins(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, F.one_hot(labels, CLASSES).to(outputs))


@pytest.mark.parametrize("loss_of", [cross_entropy, coins])
def test_the_trace_of_the_dense_matrix_is_spread_less(
    loss_of: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)).double()
    with torch.no_grad():
        model[4].weight.mul_(4)  # confident of some samples, as a trained network is
    inputs, labels = batch()
    parameters, draws = reference.trainable(model), torch.Generator().manual_seed(0)
    probe, sampler = ForwardProbe(model), SampledCurvature(model, parameters)

    def drawn(smallest: int) -> tuple[Tensor, Tensor, Curvature]:
        monkeypatch.setattr(module, "SMALLEST_NETWORK", smallest)
        found = []
        for _ in range(60):
            probe.start()
            sampler.start(squares=False)
            loss, call = loss_of(model(inputs.double()), labels), probe.call
            probe.stop()
            assert call is not None
            estimate = sampler.draw(loss, call, draws).trace(parameters)
            sampler.stop()
            assert estimate.standard_error is not None
            found.append(torch.stack([estimate.value, estimate.standard_error]))
        values, errors = torch.stack(found).unbind(1)
        return values, errors, Curvature(loss, parameters, draws, model=model, forward=call)

    values, errors, curvature = drawn(1)
    exact = dense(curvature.gauss_newton_product, curvature.flat_gradient()).trace()
    assert abs(values.mean() - exact) <= 4 * values.std() / len(values) ** 0.5
    assert values.std() <= 1.1 * errors.square().mean().sqrt()
    assert values.std() < drawn(10**9)[0].std() / 1.5


def test_a_sample_that_is_not_finite_spoils_no_other() -> None:
    model, (inputs, labels) = network(), batch()
    inputs[3] = torch.nan
    outputs = model(inputs)
    assert output_kernels(edge_of(outputs)) is not None
    root = find_loss_head(F.cross_entropy(outputs, labels), [outputs]).random_root(torch.Generator().manual_seed(0))
    assert root.isfinite().all(1).tolist() == [sample != 3 for sample in range(SAMPLES)]
