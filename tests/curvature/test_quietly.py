"""The user's training must not notice: same gradients, buffers, random numbers, hooks fired once."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.utils.checkpoint import checkpoint

from cockpit_lite.curvature import Curvature
from cockpit_lite.curvature.obstacles import NoSecondDerivative
from cockpit_lite.curvature.quietly import own_hooks_resting
from cockpit_lite.errors import NotMeasured
from tests.curvature.cases import Watched, forward
from tests.zoo import ZOO


def state_after_backward(watched: Watched) -> list[Tensor]:
    watched.loss.backward()
    gradients = [torch.empty(0) if p.grad is None else p.grad for p in watched.model.parameters()]
    return [*gradients, *watched.model.buffers(), torch.get_rng_state()]


@pytest.mark.parametrize("second_forward", [False, True])
@pytest.mark.parametrize("name", ZOO)
def test_training_stays_as_it_is_to_the_bit(name: str, second_forward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = state_after_backward(forward(ZOO[name]))
    watched = forward(ZOO[name])
    if second_forward:
        monkeypatch.setattr("cockpit_lite.curvature.source.OwnGraph", no_own_graph)
    curvature = watched.curvature(model=watched.model, forward=watched.call)
    measured = True
    try:
        curvature.product(torch.ones(curvature.dimension))
    except NotMeasured:
        measured = False
    assert all(parameter.grad is None for parameter in watched.model.parameters())
    assert measured or second_forward or ZOO[name].no_double_backward == "embedding bag"
    for before, after in zip(plain, state_after_backward(watched), strict=True):
        assert torch.equal(before, after)


def no_own_graph(*args: object) -> None:
    raise NoSecondDerivative("the test wants a second forward")


def test_hooks_on_parameters_do_not_fire_and_do_not_change_the_curvature() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    fired = []

    def halve(gradient: Tensor) -> Tensor:
        fired.append(gradient)
        return gradient / 2

    weight.register_hook(halve)
    loss = (weight**3).sum()
    curvature = Curvature(loss, {"weight": weight}, torch.Generator())
    assert curvature.product(torch.ones(2)).tolist() == [6.0, 12.0]
    assert not fired
    loss.backward()
    assert len(fired) == 1
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.5, 6.0]


@pytest.mark.parametrize("given", [True, False], ids=["model given", "found in the graph"])
def test_a_module_with_a_backward_hook_is_left_alone(given: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    fired = []
    model[1].register_full_backward_hook(lambda *args: fired.append(args))
    loss = model(torch.ones(4, 3)).sum()
    curvature = Curvature(loss, dict(model.named_parameters()), torch.Generator(), model=model if given else None)
    with pytest.raises(NotMeasured, match="backward hook that would fire a second time"):
        curvature.product(torch.ones(8))
    loss.backward()
    assert len(fired) == 1


def test_a_backward_hook_on_all_modules_is_left_alone() -> None:
    model, fired = nn.Linear(3, 2), []
    handle = register_module_full_backward_hook(lambda *args: fired.append(args))
    try:
        loss = model(torch.ones(4, 3, requires_grad=True)).sum()
        with pytest.raises(NotMeasured, match="all modules have a backward hook"):
            Curvature(loss, dict(model.named_parameters()), torch.Generator()).product(torch.ones(8))
    finally:
        handle.remove()
    assert not fired


def test_recomputed_activations_are_not_seen_by_our_own_probes() -> None:
    model, fired = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), []

    def hook(*args: object) -> None:
        fired.append(args)

    hook.__module__ = "cockpit_lite.probes.somewhere"
    loss = checkpoint(model, torch.ones(4, 3, requires_grad=True), use_reentrant=False).sum()
    handle = register_module_forward_hook(hook)
    try:
        Curvature(loss, dict(model.named_parameters()), torch.Generator()).product(torch.ones(12))
        assert not fired
        loss.backward()
        assert fired  # it could have
    finally:
        handle.remove()


def test_recomputed_activations_move_no_statistics_and_draw_no_random_numbers() -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    # Without preserving the random state each recomputation draws anew.
    loss = checkpoint(inner, torch.randn(8, 3), use_reentrant=False, preserve_rng_state=False).pow(2).sum()
    before = [*map(torch.clone, inner.buffers()), torch.get_rng_state()]
    curvature = Curvature(loss, dict(inner.named_parameters()), torch.Generator(), model=inner)
    curvature.product(torch.ones(curvature.dimension))
    for old, new in zip(before, [*inner.buffers(), torch.get_rng_state()], strict=True):
        assert torch.equal(old, new)


def test_autocast_around_the_backward_does_not_round_the_products() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 1))
    loss = model(torch.randn(16, 30)).pow(2).mean()
    vector = torch.randn(sum(parameter.numel() for parameter in model.parameters()))
    plain = Curvature(loss, dict(model.named_parameters()), torch.Generator()).product(vector)
    with torch.autocast("cpu", torch.bfloat16):
        inside = Curvature(loss, dict(model.named_parameters()), torch.Generator()).product(vector)
    assert torch.equal(plain, inside)


def test_works_where_gradients_are_switched_off() -> None:
    weight = nn.Parameter(torch.ones(2))
    loss = (weight**2).sum()
    with torch.no_grad():
        assert Curvature(loss, {"weight": weight}, torch.Generator()).product(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", ["mlp", "encoder_batch_first", "recommender"], ids=["own graph", "second forward", "failure"])
def test_the_graph_is_let_go_of_at_once(name: str) -> None:
    watched = forward(ZOO[name])
    curvature = watched.curvature(model=watched.model, forward=watched.call)
    with suppress(NotMeasured):
        curvature.product(torch.ones(curvature.dimension))
    loss = weakref.ref(watched.loss)
    gc.disable()  # what only the garbage collector frees is memory the user's next step misses
    try:
        del watched, curvature
        assert loss() is None
    finally:
        gc.enable()


def test_entered_once_for_many_passes_everything_is_put_back_at_the_end() -> None:
    watched = forward(ZOO["mlp"])
    curvature = watched.curvature(model=watched.model)
    fired: list[None] = []
    weight = next(iter(watched.model.parameters()))
    weight.register_hook(lambda gradient: fired.append(None))
    hooks, state = dict(weight._backward_hooks or {}), torch.get_rng_state()
    alone = watched.curvature(model=watched.model).gradient_product
    with curvature.undisturbed():
        assert not weight._backward_hooks
        assert torch.equal(curvature.gradient_product, alone)
        curvature.product(alone)
        assert not weight._backward_hooks  # still, after passes of its own
        torch.rand(3)
    assert not fired
    assert dict(weight._backward_hooks or {}) == hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_that_come_and_go_while_ours_rest() -> None:
    """In another thread a training may begin or end meanwhile; what it removed must not come back."""

    def ours(*_: object) -> None:
        called.append("ours")

    def removed(*_: object) -> None:
        called.append("removed")

    ours.__module__ = removed.__module__ = "cockpit_lite.probes"
    called: list[str] = []
    first, second = register_module_forward_hook(ours), register_module_forward_hook(removed)
    try:
        with own_hooks_resting([None]):
            nn.Identity()(torch.ones(1))
            second.remove()
            third = register_module_forward_hook(lambda *_: called.append("added"))
            nn.Identity()(torch.ones(1))
        nn.Identity()(torch.ones(1))
    finally:
        for handle in (first, second, third):
            handle.remove()
    assert called == ["added", "ours", "added"]
