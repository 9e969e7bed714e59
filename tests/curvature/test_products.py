from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.curvature import Curvature
from cockpit_lite.errors import NotMeasured
from tests import reference
from tests.curvature.cases import dense, difference_along, forward, random_vectors
from tests.zoo import ZOO

MEASURED = [name for name, architecture in ZOO.items() if architecture.no_double_backward != "embedding bag"]
SMALL = [
    "linear_regression", "bilinear", "rnn", "tied_autoencoder", "bare_parameters", "lora", "sum_loss", "recursive", "conv_1d",
]  # fmt: skip


def curvature_of(loss: Tensor, *parameters: nn.Parameter, **options: object) -> Curvature:
    named = {str(index): parameter for index, parameter in enumerate(parameters)}
    return Curvature(loss, named, torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SMALL)
def test_equals_the_dense_hessian(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature()
    matrix = dense(curvature.product, curvature.flat_gradient())
    torch.testing.assert_close(matrix, reference.hessian(ZOO[name], watched.model, watched.batch))
    assert curvature.products == curvature.dimension


@pytest.mark.parametrize("name", MEASURED)
def test_products_are_derivatives_of_the_gradient(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature(forward=watched.call)
    vectors = random_vectors(watched.model)
    product = curvature.flatten(curvature.hessian_vector_product(list(vectors.values())))
    expected = difference_along(ZOO[name], vectors)
    assert (product - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("name", ["recommender", "recommender_offsets"])
def test_names_the_operation_that_cannot_be_differentiated_twice(name: str) -> None:
    watched = forward(ZOO[name])
    curvature = watched.curvature(forward=watched.call)
    for _ in range(2):  # the second time it knows
        with pytest.raises(NotMeasured, match="the operation embedding_bag_backward has no second derivative"):
            curvature.product(curvature.flat_gradient())
    assert curvature.products == 0
    watched.loss.backward()


def test_the_gradient_is_the_users_gradient_to_the_bit() -> None:
    watched = forward(ZOO["resnet_batch_norm"])
    gradient = watched.curvature().gradient
    watched.loss.backward()
    for name, parameter in watched.model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(gradient[name], parameter.grad)
        assert not gradient[name].requires_grad


def test_frozen_parameters_are_left_out_and_unused_ones_count_as_zero() -> None:
    watched = forward(ZOO["frozen_and_unused"], torch.float64)
    curvature = watched.curvature()
    assert list(curvature.parameters) == list(reference.trainable(watched.model))
    matrix = dense(curvature.product, curvature.flat_gradient())
    torch.testing.assert_close(matrix, reference.hessian(ZOO["frozen_and_unused"], watched.model, watched.batch))
    assert (matrix.abs().sum(0) == 0).any()


def test_a_parameter_known_by_two_names_counts_once() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    assert curvature_of((weight**3).sum(), weight, weight).product(torch.ones(2)).tolist() == [6.0, 12.0]


def test_a_linear_loss_has_a_hessian_of_exactly_zero() -> None:
    weight = nn.Parameter(torch.ones(3))
    assert curvature_of((2 * weight).sum(), weight).product(torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_the_part_of_a_loss_that_is_linear_adds_nothing() -> None:
    straight, bent = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    product = curvature_of(straight.sum() + (bent**2).sum(), straight, bent).product(torch.ones(4))
    assert product.tolist() == [0.0, 0.0, 2.0, 2.0]


def test_the_scale_of_a_gradient_scaler_is_divided_out() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    curvature = curvature_of(1024 * (weight**3).sum(), weight, scale=1024)
    assert curvature.gradient["0"].tolist() == [3.0, 12.0]
    assert curvature.product(torch.ones(2)).tolist() == [6.0, 12.0]


def test_a_non_finite_loss_gives_products_that_are_not_finite() -> None:
    weight = nn.Parameter(torch.ones(2))
    assert curvature_of((weight**2 * torch.nan).sum(), weight).product(torch.ones(2)).isnan().all()


def test_half_precision_weights_are_handled_as_single_precision_vectors() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    product = curvature_of((weight**2).sum(), weight).product(torch.ones(2))
    assert product.dtype == torch.float32
    assert product.tolist() == [2.0, 2.0]


class _Detached(torch.autograd.Function):
    """Square whose gradient holds no graph, as fused kernels write it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.slope = 2 * x  # type: ignore[attr-defined]
        return x**2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> Tensor:
        return ctx.slope * slope  # type: ignore[attr-defined]


class _Once(_Detached):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> Tensor:
        return ctx.slope * slope  # type: ignore[attr-defined]


class _Good(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return 2 * x * slope


OBSTACLES = {
    r"not a single number but has the shape \(3,\)": lambda weight: weight**2,
    "the loss has no graph": lambda weight: (weight.detach() ** 2).sum(),
    "depends on none of the watched parameters": lambda weight: (nn.Parameter(torch.ones(1)) ** 2).sum(),
    "gradient of the custom autograd function _Detached cannot be": lambda weight: _Detached.apply(weight).sum(),
    "marked once_differentiable": lambda weight: (_Once.apply(weight) ** 2).sum(),
}


@pytest.mark.parametrize("reason", OBSTACLES)
def test_says_why_it_is_not_measured(reason: str) -> None:
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(NotMeasured, match=reason):
        curvature_of(OBSTACLES[reason](weight), weight).product(torch.ones(3))


def test_complex_parameters_are_refused() -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(NotMeasured, match="complex parameters"):
        _ = curvature_of(weight.abs().sum(), weight).gradient


def test_a_custom_function_with_a_second_derivative_is_measured_with_a_note() -> None:
    weight = nn.Parameter(torch.ones(3))
    curvature = curvature_of(_Good.apply(weight).sum(), weight)
    assert curvature.product(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert curvature.note == "second derivative taken on trust: _Good"


def test_without_parameters_and_after_release_there_is_a_reason() -> None:
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(NotMeasured, match="no parameter requires a gradient"):
        _ = curvature_of((weight**2).sum()).gradient
    curvature = curvature_of((weight**2).sum(), weight)
    curvature.product(torch.ones(3))
    curvature.release()
    with pytest.raises(NotMeasured, match="no longer there"):
        curvature.product(torch.ones(3))


def test_after_an_inplace_change_there_is_a_reason() -> None:
    weight = nn.Parameter(torch.ones(3))
    hidden = weight.exp()
    loss = hidden.sum()
    with torch.no_grad():
        hidden.zero_()
    with pytest.raises(NotMeasured, match="changed in place after the forward pass"):
        curvature_of(loss, weight).product(torch.ones(3))


def test_after_the_users_backward_there_is_a_reason() -> None:
    weight = nn.Parameter(torch.ones(3))
    loss = (weight**3).sum()
    loss.backward()
    with pytest.raises(NotMeasured, match="already freed"):
        curvature_of(loss, weight).product(torch.ones(3))


def test_compiled_code_is_named() -> None:
    model = torch.compile(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), backend="aot_eager")
    loss = model(torch.ones(4, 3)).sum()
    with pytest.raises(NotMeasured, match="compiled code has no second derivative"):
        Curvature(loss, dict(model.named_parameters()), torch.Generator()).product(torch.ones(8))
