from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cockpit_lite.curvature import ForwardProbe
from cockpit_lite.errors import NotMeasured
from cockpit_lite.probes import replay as replay_module
from cockpit_lite.probes.replay import Expansion, Replay, Seen
from tests import reference
from tests.curvature.cases import Watched, difference_along, forward, random_vectors
from tests.zoo import ZOO, Architecture

#: What of the zoo is not replayed, and why.
NOT_KNOWN = {
    "vae": "a part of the loss is a constant|not one of the model's outputs",
    "physics_informed": "not one of the model's outputs",
}


def weights_of(watched: Watched) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in watched.model.named_parameters()}


def total(terms: object) -> float:
    return sum(float(term.sum()) for term in terms)  # type: ignore[attr-defined]


def moved(model: nn.Module, direction: dict[str, Tensor]) -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in direction:
                parameter.add_(direction[name])
    return model


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if a.name not in NOT_KNOWN], ids=lambda a: a.name)
def test_the_expansion_is_right_over_the_zoo(architecture: Architecture, train: bool) -> None:
    watched = forward(architecture, torch.float64, train)
    direction = random_vectors(watched.model)
    replay = Replay(watched.loss, watched.call)
    expansion = replay.expand(weights_of(watched), direction)
    assert not replay.forward_mode_obstacle  # nothing in the zoo needs a graph

    torch.manual_seed(3)
    gradient = reference.gradient(architecture, watched.model, watched.batch)
    slope = sum((gradient[name] * vector).sum() for name, vector in direction.items())
    bent = difference_along(architecture, direction, train)
    curvature = bent @ torch.cat([vector.flatten() for vector in direction.values()])
    assert total(expansion.terms) == pytest.approx(watched.loss.item(), rel=1e-12)
    assert float(expansion.slope) == pytest.approx(float(slope), rel=1e-9, abs=1e-12)
    assert float(expansion.curvature) == pytest.approx(float(curvature), rel=1e-5, abs=1e-6 * float(bent.norm()))


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("architecture", [a for a in ZOO.values() if a.name not in NOT_KNOWN], ids=lambda a: a.name)
def test_the_loss_elsewhere_is_right_over_the_zoo(architecture: Architecture, train: bool) -> None:
    watched = forward(architecture, torch.float64, train)
    direction = {name: 0.1 * vector for name, vector in random_vectors(watched.model).items()}
    weights = {name: value + direction.get(name, 0) for name, value in weights_of(watched).items()}
    terms = Replay(watched.loss, watched.call).terms(weights)
    torch.manual_seed(3)
    expected = architecture.loss(moved(watched.model, direction), watched.batch).item()
    assert total(terms) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["mlp_dropout", "resnet_batch_norm", "two_heads", "lstm", "gpt_tied", "recommender"])
def test_by_the_graph_it_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = forward(ZOO[name], torch.float64)
    replay, direction, weights = Replay(watched.loss, watched.call), random_vectors(watched.model), weights_of(watched)
    forwards = replay.expand(weights, direction)
    monkeypatch.setitem(replay_module._obstacles, watched.model, "the test wants a graph")
    if name == "recommender":
        with pytest.raises(NotMeasured, match="embedding_bag_backward has no second derivative"):
            replay.expand(weights, direction)
        return
    by_graph = replay.expand(weights, direction)
    for one, other in zip(vars(forwards).values(), vars(by_graph).values(), strict=True):
        torch.testing.assert_close(one, other)


class Rounded(torch.autograd.Function):
    """A straight-through estimator: its backward pass is not the derivative of its forward pass."""

    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: object, slope: Tensor) -> Tensor:
        return slope


class Odd(nn.Module):
    """A layer behind some function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.first, self.second = function, nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


def reversed_gradient(x: Tensor) -> Tensor:
    if x.requires_grad:
        x = x * 1  # no leaf
        x.register_hook(torch.neg)
    return x


ODD: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "straight-through": (Rounded.apply, "the custom autograd function Rounded has a derivative of its own"),
    "no rule": (lambda x: x.exp().digamma(), "it is not known how aten.digamma.default moves"),
    "hook on an inner tensor": (reversed_gradient, "the user's backward pass is not the derivative of the forward pass"),
}


@pytest.mark.parametrize("name", ODD)
def test_where_it_is_not_known_how_the_model_moves_a_graph_is_made_for_good(name: str) -> None:
    function, reason = ODD[name]
    torch.manual_seed(0)
    model, inputs = Odd(function), torch.randn(5, 3)
    probe = ForwardProbe(model)
    for _ in range(2):
        probe.start()
        loss, call = model(inputs).square().sum(), probe.call
        probe.stop()
        assert call is not None
        replay = Replay(loss, call)
        gradient = dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        squared = torch.stack([value.square().sum() for value in gradient.values()]).sum()
        replay.expand(weights, gradient, Seen(squared, squared))
        assert replay.forward_mode_obstacle == reason


@pytest.mark.parametrize("name", NOT_KNOWN)
def test_what_cannot_be_replayed_has_a_reason(name: str) -> None:
    watched = forward(ZOO[name])
    with pytest.raises(NotMeasured, match=NOT_KNOWN[name]):
        Replay(watched.loss, watched.call).expand(weights_of(watched), random_vectors(watched.model))


@pytest.mark.parametrize("name", ["mlp", "conv", "gpt_tied", "deep_linear", "linear_regression", "frozen_and_unused"])
def test_the_gauss_newton_part_is_the_curvature_of_the_loss_of_a_linearised_model(name: str) -> None:
    """By central differences of the outputs, and the loss's own second derivative."""
    watched = forward(ZOO[name], torch.float64, train=False)
    direction = random_vectors(watched.model)
    replay = Replay(watched.loss, watched.call)
    expansion = replay.expand(weights_of(watched), direction)
    (head,) = replay.heads
    sides = []
    for sign in (1, -1):
        model = moved(watched.model, {key: sign * 1e-6 * vector for key, vector in direction.items()})
        output = model(*watched.batch.inputs)
        sides.append(head.from_output(output.detach()))
    move = (sides[0] - sides[1]) / 2e-6
    point = head.prediction.clone().requires_grad_()
    (slope,) = torch.autograd.grad(head.loss(point), point, create_graph=True)
    (bent,) = torch.autograd.grad(slope, point, move)
    torch.testing.assert_close(expansion.gauss_newton[0], move * bent, rtol=1e-4, atol=1e-8)


def test_what_a_gradient_scaler_did_is_undone() -> None:
    watched = forward(ZOO["mlp"], torch.float64)
    direction, weights = random_vectors(watched.model), weights_of(watched)
    plain = Replay(watched.loss, watched.call).expand(weights, direction)
    scaled = Replay(watched.loss * 1024, watched.call, torch.tensor(1024.0)).expand(weights, direction)
    for name in ("slope", "curvature"):
        torch.testing.assert_close(getattr(plain, name), getattr(scaled, name))
    torch.testing.assert_close(list(plain.terms), list(scaled.terms))
    torch.testing.assert_close(list(plain.gauss_newton), list(scaled.gauss_newton))


def test_a_loss_of_several_terms() -> None:
    watched = forward(ZOO["two_heads"], torch.float64)
    replay = Replay(watched.loss, watched.call)
    assert len(replay.heads) == 2
    assert total(replay.terms(weights_of(watched))) == pytest.approx(watched.loss.item())


def test_nothing_of_the_user_s_is_touched() -> None:
    watched = forward(ZOO["mlp_batch_norm_dropout"])
    replay = Replay(watched.loss, watched.call)
    watched.loss.backward()
    weights = weights_of(watched)
    kept = copy.deepcopy(watched.model.state_dict())
    gradients = {name: p.grad.clone() for name, p in watched.model.named_parameters() if p.grad is not None}
    random_state = torch.get_rng_state()
    replay.expand(weights, random_vectors(watched.model))
    replay.terms(weights)
    assert torch.equal(random_state, torch.get_rng_state())
    for name, value in watched.model.state_dict().items():
        assert torch.equal(value, kept[name])
    for name, parameter in watched.model.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, gradients[name])
        assert not weights[name].requires_grad


def test_it_holds_no_graph() -> None:
    model = nn.Linear(2, 1)
    probe = ForwardProbe(model)
    probe.start()
    loss = model(torch.randn(3, 2)).square().mean()
    call = probe.call
    assert call is not None
    replay = Replay(loss, call)
    probe.stop()
    held = [value for value in vars(replay).values() if isinstance(value, Tensor)]
    held += [value for head in replay.heads for value in (head.prediction, *vars(head).values()) if isinstance(value, Tensor)]
    assert held and not any(value.requires_grad for value in held)


def test_inputs_that_were_changed_in_place_have_a_reason() -> None:
    watched = forward(ZOO["mlp"])
    replay = Replay(watched.loss, watched.call)
    watched.batch.inputs[0].mul_(2)
    with pytest.raises(NotMeasured, match="changed in place"):
        replay.terms(weights_of(watched))


def test_a_forward_that_never_is_the_same_has_a_reason() -> None:
    class Moody(nn.Linear):
        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            Moody.calls += 1
            return super().forward(inputs) * Moody.calls

    model = Moody(2, 1)
    probe = ForwardProbe(model)
    probe.start()
    loss = model(torch.randn(3, 2)).square().mean()
    assert probe.call is not None
    replay = Replay(loss, probe.call)
    probe.stop()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    with pytest.raises(NotMeasured, match="gave another loss"):
        replay.expand(weights, weights)


def test_a_linear_loss_has_no_curvature() -> None:
    model = nn.Linear(2, 1)
    probe = ForwardProbe(model)
    probe.start()
    loss = model(torch.ones(3, 2)).sum()
    assert probe.call is not None
    replay = Replay(loss, probe.call)
    probe.stop()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    expansion = replay.expand(weights, {"weight": torch.ones(1, 2), "bias": torch.ones(1)})
    assert isinstance(expansion, Expansion)
    assert (float(expansion.slope), float(expansion.curvature), total(expansion.gauss_newton)) == (9.0, 0.0, 0.0)


def test_a_forward_that_counts_its_calls_does_the_same_again() -> None:
    class Counting(nn.Linear):
        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 1:
                raise KeyboardInterrupt
            return super().forward(inputs)

    model = Counting(2, 1)
    probe = ForwardProbe(model)
    probe.start()
    loss = model(torch.ones(3, 2)).square().mean()
    assert probe.call is not None
    replay = Replay(loss, probe.call)
    probe.stop()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert total(replay.terms(weights)) == pytest.approx(loss.item())
    assert model.calls == 1


def test_a_forward_that_fails_when_repeated_has_a_reason() -> None:
    failing: list[bool] = []

    class Failing(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if failing:
                raise ZeroDivisionError("in the forward")
            return super().forward(inputs)

    model = Failing(2, 1)
    probe = ForwardProbe(model)
    probe.start()
    loss = model(torch.ones(3, 2)).square().mean()
    assert probe.call is not None
    replay = Replay(loss, probe.call)
    probe.stop()
    failing.append(True)
    with pytest.raises(NotMeasured, match=r"cannot be repeated \(ZeroDivisionError: in the forward\)"):
        replay.terms({name: parameter.detach() for name, parameter in model.named_parameters()})


def test_a_model_that_is_given_its_own_output_has_a_reason() -> None:
    model = nn.Linear(2, 2)
    probe = ForwardProbe(model)
    probe.start()
    loss = model(model(torch.ones(3, 2))).square().mean()
    assert probe.call is not None
    with pytest.raises(NotMeasured, match="computed with a graph"):
        Replay(loss, probe.call)
    probe.stop()
