"""What the instruments of one step share, through a whole cockpit and by itself."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cockpit_lite import load_run
from cockpit_lite.curvature import Curvature, CurvatureMemory, ForwardProbe
from cockpit_lite.errors import NotMeasured
from cockpit_lite.instrument import CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL, Instrument, Readings
from cockpit_lite.step import Step
from tests import reference
from tests.curvature.cases import dense, forward
from tests.identity import cockpit
from tests.zoo import ZOO

# Nets whose Gauss-Newton matrix is small enough to write it down.
SMALL = [
    "linear_regression",
    "bilinear",
    "rnn",
    "tied_autoencoder",
    "bare_parameters",
    "lora",
    "sum_loss",
    "recursive",
    "conv_1d",
]


def gauss_newton(name: str) -> tuple[Tensor, Curvature]:
    """Return J'L''J straight from its definition, and a curvature of the same loss."""
    watched = forward(ZOO[name], torch.float64)
    parameters = [parameter for parameter in watched.model.parameters() if parameter.requires_grad]
    (output,) = watched.call.outputs()

    def rows(value: Tensor, inputs: list[Tensor]) -> Tensor:
        found = [torch.autograd.grad(v, inputs, retain_graph=True, materialize_grads=True) for v in value.flatten()]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in found])

    jacobian = rows(output, list(parameters))
    (slope,) = torch.autograd.grad(watched.loss, output, create_graph=True)
    second = rows(slope, [output])
    return jacobian.T @ second @ jacobian, watched.curvature(forward=watched.call, model=watched.model)


@pytest.mark.parametrize("name", SMALL)
def test_gauss_newton_products_equal_the_dense_matrix(name: str) -> None:
    expected, curvature = gauss_newton(name)
    matrix = dense(curvature.gauss_newton_product, curvature.flat_gradient())
    torch.testing.assert_close(matrix, expected)
    assert torch.linalg.eigvalsh(matrix)[0] > -1e-10
    assert (curvature.gauss_newton_products, curvature.products) == (curvature.dimension, 0)


def test_with_one_linear_layer_it_is_the_hessian() -> None:
    expected, curvature = gauss_newton("linear_regression")
    torch.testing.assert_close(dense(curvature.product, curvature.flat_gradient()), expected)


@pytest.mark.parametrize("name", ["encoder_batch_first", "gpt_tied", "vit"])
def test_gauss_newton_products_are_symmetric_and_not_negative_on_any_graph(name: str) -> None:
    """By a second forward where attention is fused, on the user's own graph elsewhere."""
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature(forward=watched.call, model=watched.model)
    first, second = torch.randn(2, curvature.dimension, dtype=torch.float64)
    products = [curvature.gauss_newton_product(vector) for vector in (first, second)]
    assert first @ products[1] == pytest.approx((second @ products[0]).item(), rel=1e-9)
    assert first @ products[0] > 0
    curvature.product(first)  # the Hessian goes by the same graph


@pytest.mark.parametrize("name", ["vae", "physics_informed"])
def test_without_known_outputs_there_is_a_reason_and_the_hessian_stays(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature(forward=watched.call, model=watched.model)
    with pytest.raises(NotMeasured, match="so there is no Gauss-Newton matrix"):
        curvature.gauss_newton_product(curvature.flat_gradient())
    assert curvature.product(curvature.flat_gradient()).isfinite().all()


def test_a_model_that_returns_its_loss_beside_the_logits() -> None:
    class OwnLoss(torch.nn.Linear):
        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            logits = super().forward(x)
            return {"loss": torch.nn.functional.cross_entropy(logits, y), "logits": logits}

    model = OwnLoss(3, 4).double()
    probe = ForwardProbe(model)
    probe.start()
    loss = model(torch.randn(5, 3).double(), torch.tensor([0, 1, 2, 3, 0]))["loss"]
    call = probe.call
    probe.stop()
    curvature = Curvature(loss, dict(model.named_parameters()), torch.Generator(), forward=call)
    vector = torch.randn(16, dtype=torch.float64)
    # Of one linear layer the Hessian is the Gauss-Newton matrix.
    torch.testing.assert_close(curvature.gauss_newton_product(vector), curvature.product(vector))


@pytest.mark.parametrize("name", ["mlp", "encoder_batch_first"])
def test_a_block_is_a_block_of_the_whole(name: str) -> None:
    watched = forward(ZOO[name], torch.float64)
    curvature = watched.curvature(forward=watched.call, model=watched.model)
    names = list(curvature.parameters)[1:3]
    block = curvature.restricted(names)
    vector = torch.randn(block.dimension, dtype=torch.float64)
    pieces = iter(block.unflatten(vector))
    whole = [next(pieces) if name in names else torch.zeros_like(p) for name, p in curvature.parameters.items()]
    for product, block_product in (
        (curvature.hessian_vector_product, block.product),
        (curvature.gauss_newton_vector_product, block.gauss_newton_product),
    ):
        found = dict(zip(curvature.parameters, product(whole), strict=True))
        torch.testing.assert_close(block_product(vector), curvature.flatten([found[name] for name in names]))
    assert list(block.gradient) == names
    assert torch.equal(block.gradient[names[0]], curvature.gradient[names[0]])


def test_a_block_of_unknown_parameters_has_a_reason() -> None:
    with pytest.raises(NotMeasured, match="none of these parameters is trained"):
        forward(ZOO["mlp"]).curvature().restricted(["nothing"])


def test_what_is_shared_is_computed_once() -> None:
    curvature = forward(ZOO["mlp"]).curvature()
    product = curvature.gradient_product
    assert curvature.gradient_product is product
    curvature.top_eigenpairs()
    spent = curvature.products
    curvature.top_eigenpairs()
    assert curvature.products == spent
    first, more = curvature.random_products(1), curvature.random_products(3)
    assert torch.equal(first.products[0], more.products[0])
    assert curvature.products == spent + 3
    curvature.trace(3)
    assert curvature.products == spent + 3
    curvature.spectral_density(4, 3)
    assert curvature.products == spent + 3 + 9


def test_what_random_products_say_beside_the_search_is_made_again_once_it_has_gone_on() -> None:
    curvature = forward(ZOO["mlp"], torch.float64).curvature()
    curvature.top_eigenpairs(tolerance=0.5, max_products=2)
    early, known = curvature.random_remainder(2), len(curvature.krylov.basis)
    assert curvature.random_remainder(2) is early
    curvature.top_eigenpairs(tolerance=1e-6, max_products=6)
    late, samples = curvature.random_remainder(2), curvature.random_products(2)
    basis = curvature.krylov.basis
    assert len(basis) > known
    for signs, image, square in zip(samples.signs, late.images, late.squares, strict=True):
        outside = torch.eye(curvature.dimension, dtype=torch.float64) - basis.T @ basis
        torch.testing.assert_close(image, curvature.product(outside @ signs))
        torch.testing.assert_close(square, (outside @ image).square().sum())


def test_a_basis_that_has_been_outgrown_is_not_kept() -> None:
    curvature = forward(ZOO["mlp"]).curvature()
    curvature.top_eigenpairs(tolerance=0.5, max_products=2)
    curvature.trace(1)
    outgrown = weakref.ref(curvature.krylov.basis._base)
    curvature.top_eigenpairs(tolerance=1e-6, max_products=10)
    assert len(curvature.krylov.basis) > 5 and outgrown() is None


def test_the_next_step_begins_with_the_eigenvectors_of_the_last() -> None:
    memory = CurvatureMemory()
    first = forward(ZOO["mlp"]).curvature(memory=memory)
    found = first.top_eigenpairs(2, tolerance=1e-3, max_products=40)
    assert first.previous_eigenvectors() is None
    second = forward(ZOO["mlp"]).curvature(memory=memory)
    known = second.previous_eigenvectors()
    assert known is not None
    torch.testing.assert_close(known[:2], found.vectors)
    assert len(known) == 4  # what the basis knew of the next ones, too
    assert second.top_eigenpairs(2, tolerance=1e-3, max_products=40).values == pytest.approx(found.values, rel=1e-3)
    assert second.products < first.products
    third = forward(ZOO["conv"]).curvature(memory=memory)  # another model
    assert third.previous_eigenvectors() is None
    third.top_eigenpairs()
    assert forward(ZOO["mlp"]).curvature(memory=memory).previous_eigenvectors() is None


class GaussNewton(Instrument):
    """Writes the trace by sampled labels and by the dense matrix."""

    name = "gauss_newton"
    needs = (CURVATURE, SAMPLED_CURVATURE, SAMPLED_DIAGONAL)

    def measure(self, step: Step) -> Readings:
        curvature = step.curvature
        estimate = curvature.gauss_newton_trace()
        block = curvature.restricted(list(curvature.parameters)[:1])
        assert estimate.standard_error is not None
        return {
            "sampled": estimate.value,
            "standard_error": estimate.standard_error,
            "dense": dense(curvature.gauss_newton_product, curvature.flat_gradient()).trace(),
            "diagonal": torch.stack([value.sum() for value in curvature.gauss_newton_diagonal().values()]).sum(),
            "block": block.gauss_newton_trace().value,
        }


def test_sampled_curvature_through_a_cockpit(tmp_path: Path) -> None:
    architecture = ZOO["rnn"]
    model = architecture.build(dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = torch.Generator().manual_seed(0)
    with cockpit(model, optimizer, run=tmp_path / "run", instruments=[GaussNewton(), "norm_test"], budget=None):
        for _ in range(3):
            optimizer.zero_grad()
            architecture.loss(model, architecture.batch(16, batches, torch.float64)).backward()
            optimizer.step()
    run = load_run(tmp_path / "run")
    values = {name: run.series(name)[1] for name in ("sampled", "standard_error", "dense", "diagonal", "block", "norm_test")}
    assert all(len(value) == 3 for value in values.values())
    assert (abs(values["sampled"] - values["dense"]) < 4 * values["standard_error"]).all()
    assert values["diagonal"] == pytest.approx(values["sampled"])
    assert (values["block"] < values["sampled"]).all()


def test_nobody_asked_in_time() -> None:
    watched = forward(ZOO["mlp"])
    with pytest.raises(NotMeasured, match="no instrument asked for sampled labels"):
        watched.curvature(forward=watched.call).gauss_newton_trace()


def test_the_reference_is_the_hessian_of_a_linear_model() -> None:
    """The reference above against another one."""
    expected, _ = gauss_newton("linear_regression")
    watched = forward(ZOO["linear_regression"], torch.float64)
    torch.testing.assert_close(expected, reference.hessian(ZOO["linear_regression"], watched.model, watched.batch))
