from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_registry
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.checkpoint import checkpoint

from cockpit_lite import Cockpit, load_run
from cockpit_lite.curvature import Curvature, ForwardProbe
from cockpit_lite.curvature.obstacles import NoSecondDerivative
from cockpit_lite.curvature.second_forward import ForwardCall
from cockpit_lite.errors import NotMeasured
from tests.curvature.cases import dense, forward, random_vectors
from tests.zoo import ZOO

# Losses that are more than a function of independent outputs of one call.
REASONS = {
    "vae": "one is made of another",
    "physics_informed": "uses parameters beside the model's output",
    "recommender": "no second derivative",
    "recommender_offsets": "no second derivative",
}


@pytest.fixture
def no_own_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise NoSecondDerivative("the test wants a second forward")

    monkeypatch.setattr("cockpit_lite.curvature.source.OwnGraph", refuse)


class Attention(nn.Module):
    """Fused attention, with dropout that a repetition must draw again and traces that it must not leave."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        query, key, value = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        self.last = self.norm(self.drop(mixed).transpose(1, 2))
        return self.last


def watch(model: nn.Module, *args: Any) -> tuple[Any, ForwardCall]:
    probe = ForwardProbe(model)
    probe.start()
    output = model(*args)
    call = probe.call
    probe.stop()
    assert call is not None
    assert probe.call is None
    return output, call


def curvature_of(loss: Tensor, model: nn.Module, call: ForwardCall | None) -> Curvature:
    return Curvature(loss, dict(model.named_parameters()), torch.Generator(), model=model, forward=call)


OWN_GRAPH_TOO = [
    name
    for name, architecture in ZOO.items()
    if name not in REASONS
    and name != "weight_norm"
    and not architecture.no_double_backward
    and architecture.checkpointed != "reentrant"
]


@pytest.mark.parametrize("name", OWN_GRAPH_TOO)
def test_agrees_with_the_users_own_graph(name: str, request: pytest.FixtureRequest) -> None:
    watched = forward(ZOO[name], torch.float64)
    vectors = list(random_vectors(watched.model).values())
    own, second = watched.curvature(), watched.curvature(forward=watched.call)
    expected, gradient = own.flatten(own.hessian_vector_product(vectors)), own.flat_gradient()
    request.getfixturevalue("no_own_graph")
    product = second.flatten(second.hessian_vector_product(vectors))
    assert second.note == "by a second forward pass"
    assert (product - expected).norm() <= 1e-10 * expected.norm()
    assert (second.flat_gradient() - gradient).norm() <= 1e-10 * gradient.norm()


@pytest.mark.usefixtures("no_own_graph")
@pytest.mark.parametrize("name", REASONS)
def test_what_it_cannot_tell_apart_has_a_reason(name: str) -> None:
    watched = forward(ZOO[name])
    with pytest.raises(NotMeasured, match=REASONS[name]):
        curvature = watched.curvature(forward=watched.call)
        curvature.product(torch.ones(curvature.dimension))


def test_leaves_no_trace_on_the_model() -> None:
    model = Attention()
    output, call = watch(model, torch.randn(5, 8, 8))
    loss = output.pow(3).mean()
    before = [*map(torch.clone, model.buffers()), torch.get_rng_state()]
    curvature = curvature_of(loss, model, call)
    curvature.product(torch.ones(curvature.dimension))
    assert curvature.note == "by a second forward pass"
    assert model.calls == 1
    assert model.last is output
    for old, new in zip(before, [*model.buffers(), torch.get_rng_state()], strict=True):
        assert torch.equal(old, new)


def test_without_the_call_the_fused_kernel_is_named() -> None:
    model = Attention()
    loss = model(torch.randn(5, 8, 8)).pow(3).mean()
    curvature = curvature_of(loss, model, None)
    with pytest.raises(NotMeasured, match="fused kernel of scaled dot product attention has no second derivative"):
        curvature.product(torch.ones(curvature.dimension))


def compiled() -> Callable[..., Any]:
    return torch.compile(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), backend="aot_eager")  # type: ignore[return-value]


def test_a_compiled_model_is_run_eagerly() -> None:
    model = compiled()
    assert isinstance(model, nn.Module)
    inputs = torch.randn(6, 3)
    output, call = watch(model, inputs)
    compiled_curvature = curvature_of(output.pow(2).mean(), model, call)
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    plain.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in model.state_dict().items()})
    expected = curvature_of(plain(inputs).pow(2).mean(), plain, None).product(torch.ones(26))
    torch.testing.assert_close(compiled_curvature.product(torch.ones(26)), expected)
    assert compiled_curvature.note == "by a second forward pass"


def test_a_loss_the_model_returns_among_other_things_and_scaled_by_the_user() -> None:
    class OwnLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with pytest.warns(FutureWarning):  # the old way to normalise weights, by a hook
                self.inner = nn.utils.weight_norm(nn.Linear(3, 4, dtype=torch.float64))
            self.head = nn.Linear(4, 2, dtype=torch.float64)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            logits = self.head(torch.tanh(self.inner(x)))
            return {"logits": logits, "loss": F.cross_entropy(logits, y)}

    def loss_of(weights: Tensor) -> Tensor:
        direction, length, bias, *head = curvature.unflatten(weights)
        hidden = F.linear(inputs, length * direction / direction.norm(dim=1, keepdim=True), bias)
        return F.cross_entropy(F.linear(torch.tanh(hidden), *head), targets) / 4

    model, inputs, targets = OwnLoss(), torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    output, call = watch(model, inputs, targets)
    named = dict(model.named_parameters())
    named = {name: named[name] for name in ("inner.weight_v", "inner.weight_g", "inner.bias", "head.weight", "head.bias")}
    curvature = Curvature(output["loss"] / 4, named, torch.Generator(), model=model, forward=call)
    weights = curvature.flatten(list(named.values()))
    torch.testing.assert_close(dense(curvature.product, weights), torch.autograd.functional.hessian(loss_of, weights))


def test_under_autocast_it_is_measured_in_full_precision() -> None:
    model = Attention()
    inputs = torch.randn(5, 8, 8)
    torch.manual_seed(1)
    expected = curvature_of(*_loss(model, inputs)).product(torch.ones(232))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        call_output, call = watch(model, inputs)
        loss = call_output.float().pow(3).mean()
    curvature = curvature_of(loss, model, call)
    product = curvature.product(torch.ones(232))
    assert curvature.note == "by a second forward pass in full precision"
    # The outputs, at which the loss is differentiated, are still the rounded ones.
    assert (product - expected).norm() < 0.05 * expected.norm()


def _loss(model: nn.Module, inputs: Tensor) -> tuple[Tensor, nn.Module, ForwardCall]:
    output, call = watch(model, inputs)
    return output.pow(3).mean(), model, call


def test_a_forward_hook_of_the_user_is_not_fired_again() -> None:
    model = Attention()
    fired = []
    model.drop.register_forward_hook(lambda *args: fired.append(args))
    output, call = watch(model, torch.randn(5, 8, 8))
    curvature = curvature_of(output.pow(3).mean(), model, call)
    with pytest.raises(NotMeasured, match="the module 'drop' has a forward hook that would fire a second time"):
        curvature.product(torch.ones(curvature.dimension))
    assert len(fired) == 1


@pytest.mark.parametrize("everywhere", [False, True], ids=["on the module", "on all modules"])
def test_our_own_forward_hooks_rest_meanwhile(everywhere: bool) -> None:
    model = Attention()
    fired = []

    def hook(*args: object) -> None:
        fired.append(args)

    hook.__module__ = "cockpit_lite.probes.somewhere"
    handle = register_module_forward_hook(hook) if everywhere else model.drop.register_forward_hook(hook)
    try:
        output, call = watch(model, torch.randn(5, 8, 8))
        before = len(fired)
        curvature = curvature_of(output.pow(3).mean(), model, call)
        curvature.product(torch.ones(curvature.dimension))
        assert len(fired) == before
        model.drop(output)
        assert len(fired) == before + 1
    finally:
        handle.remove()


def test_the_probe_leaves_nothing_on_the_model_and_sees_the_last_call() -> None:
    model, probe = Attention(), ForwardProbe(nn.Linear(2, 2))
    probe.start()
    model(torch.randn(5, 8, 8))
    assert probe.call is None  # another model
    probe.stop()
    probe = ForwardProbe(model)
    probe.start()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    with pytest.raises(RuntimeError):
        model(torch.randn(5, 8, 7))
    first, second = model(torch.randn(5, 8, 8)), model(torch.randn(5, 8, 8))
    assert probe.call is not None
    assert probe.call.output is second is not first
    probe.stop()
    assert not module_registry._has_any_global_hook()  # type: ignore[no-untyped-call]
    model(torch.randn(5, 8, 8))
    assert probe.call is None


def test_a_forward_that_cannot_be_repeated_has_a_reason() -> None:
    class Changing(Attention):
        def forward(self, x: Tensor) -> Tensor:
            settings.append(None)
            return super().forward(x) + len(settings)

    settings: list[None] = []
    model = Changing()
    output, call = watch(model, torch.randn(5, 8, 8))
    with pytest.raises(NotMeasured, match="forward cannot be repeated"):
        curvature_of(output.pow(3).mean(), model, call).product(torch.ones(232))


def test_inputs_changed_in_place_have_a_reason() -> None:
    model, inputs = Attention(), torch.randn(5, 8, 8)
    output, call = watch(model, inputs)
    loss = output.pow(3).mean()
    inputs.add_(1)
    with pytest.raises(NotMeasured, match="changed in place"):
        curvature_of(loss, model, call).product(torch.ones(232))


def test_a_loss_from_another_call_has_a_reason() -> None:
    model = Attention()
    loss = model(torch.randn(5, 8, 8)).pow(3).mean()
    _, call = watch(model, torch.randn(5, 8, 8))
    with pytest.raises(NotMeasured, match="parameters beside the model's output"):
        curvature_of(loss, model, call).product(torch.ones(232))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, slope: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * slope  # type: ignore[attr-defined]


@pytest.mark.parametrize("where", ["model", "loss"])
def test_functions_without_a_second_derivative_are_found_there_too(where: str) -> None:
    class Checkpointed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=True)

        def inner(self, x: Tensor) -> Tensor:
            hidden = super().forward(x)
            return _Once.apply(hidden) if where == "model" else hidden

    model = Checkpointed(3, 2)
    output, call = watch(model, torch.randn(4, 3, requires_grad=True))
    loss = (_Once.apply(output) if where == "loss" else output).pow(2).sum()
    with pytest.raises(NotMeasured, match="_Once is marked once_differentiable"):
        curvature_of(loss, model, call).product(torch.ones(8))


def test_hard_sigmoid_has_a_twin() -> None:
    """Its own backward cannot be differentiated, so without a second forward no curvature of a mobile net would be known."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Hardsigmoid(), nn.Linear(6, 3)).double()
    inputs, labels = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    probe = ForwardProbe(model)
    probe.start()
    loss = nn.functional.cross_entropy(model(inputs), labels)
    parameters = dict(model.named_parameters())
    vectors = [torch.randn_like(parameter) for parameter in parameters.values()]
    found = Curvature(loss, parameters, torch.Generator(), model=model, forward=probe.call).hessian_vector_product(vectors)
    probe.stop()
    hidden = (model[0](inputs).add(3).clamp(0, 6) / 6) @ model[2].weight.T + model[2].bias
    slopes = torch.autograd.grad(nn.functional.cross_entropy(hidden, labels), list(parameters.values()), create_graph=True)
    expected = torch.autograd.grad(slopes, list(parameters.values()), vectors)
    torch.testing.assert_close(found, list(expected))


def test_the_loss_of_another_model_does_not_use_up_the_call(tmp_path: Path) -> None:
    """A teacher that is trained in the same loop, or a second network: its backward pass comes between forward and backward."""
    model = ZOO["encoder_batch_first"].build()
    batch = ZOO["encoder_batch_first"].batch(4, torch.Generator().manual_seed(0), torch.float32)
    other, optimizer = nn.Linear(2, 1), torch.optim.SGD(model.parameters(), lr=0.1)
    with Cockpit(model, optimizer, run=tmp_path / "run", instruments=["hessian_trace"], budget=None):
        loss = ZOO["encoder_batch_first"].loss(model, batch)
        other(torch.ones(3, 2)).sum().backward()
        loss.backward()
        optimizer.step()
    assert "hessian_trace" in load_run(tmp_path / "run").names
