from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.curvature.sample import GaussNewtonSample
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes.sampled_curvature import SampledCurvature
from tests import reference
from tests.curvature.cases import dense
from tests.probes.test_loss_head import CASES, head_of
from tests.zoo import ZOO, Architecture

#: Losses whose root H3's heads know, on nets small enough for a dense matrix.
SMALL = ["linear_regression", "rnn", "tied_autoencoder", "bare_parameters", "lora", "sum_loss", "recursive", "conv_1d"]

#: The loss is no known function of the outputs, or there is no gradient beside the training's own.
UNKNOWN_LOSSES = ("vae", "physics_informed", "checkpointed_reentrant")


def watch(
    architecture: Architecture, count: int = 1, dtype: torch.dtype = torch.float64, squares: bool = True
) -> tuple[list[GaussNewtonSample], Curvature]:
    """Draw ``count`` times on one forward pass each, all alike."""
    model = architecture.build(dtype=dtype).eval()
    parameters = reference.trainable(model)
    probe, sampler = ForwardProbe(model), SampledCurvature(model, parameters)
    generator = torch.Generator().manual_seed(3)
    samples = []
    for _ in range(count):
        probe.start()
        sampler.start(squares)
        loss = architecture.loss(model, architecture.batch(4, torch.Generator().manual_seed(0), dtype))
        call = probe.call
        probe.stop()
        assert call is not None
        samples.append(sampler.draw(loss, call, generator))
        sampler.stop()
    return samples, Curvature(loss, parameters, generator, model=model, forward=call)


@pytest.mark.parametrize("name", SMALL)
def test_trace_and_diagonal_of_the_dense_matrix(name: str) -> None:
    samples, curvature = watch(ZOO[name], 60)
    matrix = dense(curvature.gauss_newton_product, curvature.flat_gradient())
    traces = torch.stack([sample.trace(curvature.parameters).value for sample in samples])
    assert abs(traces.mean() - matrix.trace()) <= 4 * traces.std() / len(samples) ** 0.5 + 1e-12
    diagonals = torch.stack([torch.cat([sample.diagonal(name).flatten() for name in curvature.parameters]) for sample in samples])
    spread = diagonals.std(0).norm() / len(samples) ** 0.5
    assert (diagonals.mean(0) - matrix.diagonal()).norm() <= 3 * spread + 1e-12


@pytest.mark.parametrize("name", ["rnn", "conv_1d", "mlp"])
def test_the_standard_error_is_not_too_small(name: str) -> None:
    samples, curvature = watch(ZOO[name], 100)
    found = [sample.trace(curvature.parameters) for sample in samples]
    spread = torch.stack([estimate.value for estimate in found]).std()
    errors = torch.stack([estimate.standard_error for estimate in found if estimate.standard_error is not None])
    assert spread <= 1.1 * errors.square().mean().sqrt()


def test_telling_samples_apart_lowers_the_spread() -> None:
    samples, curvature = watch(ZOO["mlp"], 200)
    apart = torch.stack([sample.trace(curvature.parameters).value for sample in samples])
    # A probe that was not started sees no samples: what is left is the square of their sum.
    architecture, draws = ZOO["mlp"], torch.Generator().manual_seed(3)
    model = architecture.build(dtype=torch.float64).eval()
    probe, sampler = ForwardProbe(model), SampledCurvature(model, reference.trainable(model))
    probe.start()
    loss = architecture.loss(model, architecture.batch(4, torch.Generator().manual_seed(0), torch.float64))
    call = probe.call
    probe.stop()
    assert call is not None
    blind = torch.stack([sampler.draw(loss, call, draws).trace(curvature.parameters).value for _ in range(200)])
    assert blind.mean() == pytest.approx(apart.mean().item(), rel=0.15)
    assert apart.std() < blind.std() / 1.5


@pytest.mark.parametrize("name", [name for name in ZOO if name not in UNKNOWN_LOSSES])
def test_without_the_gradients_of_the_parameters_it_is_the_same(name: str) -> None:
    architecture = ZOO[name]
    model = architecture.build(dtype=torch.float64)
    parameters = reference.trainable(model)
    probe, sampler = ForwardProbe(model), SampledCurvature(model, parameters)
    found = []
    for _ in range(4):  # with all gradients; as far as every module; as far as needed
        torch.manual_seed(0)
        probe.start()
        sampler.start()
        loss = architecture.loss(model, architecture.batch(4, torch.Generator().manual_seed(0), torch.float64))
        call = probe.call
        probe.stop()
        assert call is not None
        sample = sampler.draw(loss, call, torch.Generator().manual_seed(3))
        sampler.stop()
        found.append({name: (sample.trace([name]).value, sample.diagonal(name)) for name in parameters})
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


class Wandering(nn.Module):
    """Uses a weight beside the call of its module when ``beside`` says so, in calls that look the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.beside = nn.Linear(3, 5), nn.Linear(5, 2), False

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        bent = hidden @ self.first.weight @ self.first.weight.T if self.beside else hidden
        outputs: Tensor = self.last(bent)
        return outputs


class AttentionFirst(nn.Module):
    """Below its input projection is nothing that is trained, so that no shorter pass tells what arrives there."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.attention(inputs, inputs, inputs, need_weights=False)[0].mean(1))
        return outputs


@pytest.mark.parametrize("model", [Wandering(), AttentionFirst()], ids=["another use", "attention first"])
def test_where_the_shorter_pass_would_miss_something_it_is_not_taken(model: nn.Module) -> None:
    torch.manual_seed(0)
    inputs, labels = torch.randn(6, 3) if isinstance(model, Wandering) else torch.randn(6, 5, 4), torch.arange(6) % 2
    parameters = reference.trainable(model)

    def draw(sampler: SampledCurvature) -> dict[str, Tensor]:
        probe = ForwardProbe(model)
        probe.start()
        sampler.start()
        loss = F.cross_entropy(model(inputs), labels)
        call = probe.call
        probe.stop()
        assert call is not None
        sample = sampler.draw(loss, call, torch.Generator().manual_seed(3))
        sampler.stop()
        return {name: sample.trace([name]).value for name in parameters}

    used = SampledCurvature(model, parameters)
    for step, beside in enumerate((False, False, False, False, True, True, True, False)):
        model.beside = beside
        found = draw(used)
        if step != 4:  # where it learns that the call of the model has to be repeated for the weight that is used beside
            torch.testing.assert_close(found, draw(SampledCurvature(model, parameters)))


def test_the_trace_alone_is_the_same_and_there_is_no_diagonal() -> None:
    (alone,), curvature = watch(ZOO["mlp"], squares=False)
    (both,), _ = watch(ZOO["mlp"])
    assert alone.trace(curvature.parameters).value.item() == pytest.approx(both.trace(curvature.parameters).value.item())
    with pytest.raises(NotMeasured, match="asked for the diagonal"):
        alone.diagonal(next(iter(curvature.parameters)))


@pytest.mark.parametrize("name", ["encoder_batch_first", "recommender"])
def test_works_where_there_is_no_second_derivative(name: str) -> None:
    (sample,), curvature = watch(ZOO[name], dtype=torch.float32)
    estimate = sample.trace(curvature.parameters)
    assert estimate.standard_error is not None
    assert 0 < estimate.standard_error < 2 * estimate.value


def test_batch_normalisation_in_train_mode_is_not_told_apart() -> None:
    architecture = ZOO["resnet_batch_norm"]
    model = architecture.build()
    probe, sampler = ForwardProbe(model), SampledCurvature(model, reference.trainable(model))
    probe.start()
    sampler.start()
    loss = architecture.loss(model, architecture.batch(4, torch.Generator().manual_seed(0)))
    call = probe.call
    probe.stop()
    assert call is not None
    sample = sampler.draw(loss, call, torch.Generator().manual_seed(0))
    sampler.stop()
    assert not sample.squared_norms
    assert sample.trace(sample.names).value > 0


def test_the_scale_of_a_gradient_scaler_is_divided_out() -> None:
    def draw(scale: float) -> Tensor:
        torch.manual_seed(0)
        model, inputs = nn.Linear(3, 4), torch.randn(8, 3)
        probe, sampler = ForwardProbe(model), SampledCurvature(model, dict(model.named_parameters()))
        probe.start()
        sampler.start()
        loss = scale * F.cross_entropy(model(inputs), torch.arange(8) % 4)
        call = probe.call
        probe.stop()
        assert call is not None
        sample = sampler.draw(loss, call, torch.Generator().manual_seed(0), scale)
        sampler.stop()
        return torch.stack([sample.trace(["weight", "bias"]).value, sample.diagonal("bias").sum()])

    torch.testing.assert_close(draw(1024.0), draw(1.0))


def test_nothing_of_the_users_is_touched() -> None:
    architecture = ZOO["mlp_dropout"]
    model = architecture.build()
    probe, sampler = ForwardProbe(model), SampledCurvature(model, reference.trainable(model))
    torch.manual_seed(0)
    probe.start()
    sampler.start()
    batch = architecture.batch(4, torch.Generator().manual_seed(0))
    loss = architecture.loss(model, batch)
    call = probe.call
    probe.stop()
    assert call is not None
    before = torch.get_rng_state()
    sampler.draw(loss, call, torch.Generator().manual_seed(0))
    sampler.stop()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    loss.backward()
    torch.manual_seed(0)
    plain = architecture.build()
    architecture.loss(plain, batch).backward()
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.equal(mine.grad, other.grad)


def test_a_loss_that_is_not_known_has_a_reason() -> None:
    model = nn.Linear(3, 2)
    probe, sampler = ForwardProbe(model), SampledCurvature(model, dict(model.named_parameters()))
    probe.start()
    sampler.start()
    loss = torch.linalg.svdvals(model(torch.randn(4, 3))).sum()
    call: ForwardCall | None = probe.call
    probe.stop()
    assert call is not None
    with pytest.raises(NotMeasured):
        sampler.draw(loss, call, torch.Generator())
    sampler.stop()


# Of log-probabilities the Hessian is zero, and what is drawn belongs to the softmax before them.
@pytest.mark.parametrize("name", [name for name in CASES if "log-prob" not in name])
def test_random_roots_have_the_hessian_as_covariance(name: str) -> None:
    head, _, _ = head_of(CASES[name])
    point = head.prediction
    size = point.numel()
    hessian = torch.autograd.functional.hessian(head.loss, point).reshape(size, size)
    if not (torch.linalg.eigvalsh(hessian) > -1e-12).all():
        pytest.skip("not convex here")
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([head.random_root(generator).flatten() for _ in range(1000)])
    products = draws[:, :, None] * draws[:, None, :]
    for values, expected in ((products, hessian), (draws, torch.zeros(size, dtype=torch.float64))):
        spread = values.std(0).norm() / len(draws) ** 0.5
        assert (values.mean(0) - expected).norm() <= 2 * spread + 1e-12
