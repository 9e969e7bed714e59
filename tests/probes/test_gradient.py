"""Whose backward pass it was, and what the gradient was before it was clipped: without looking at a single value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cockpit_lite.probes.gradient import GradientProbe


def backward(probe: GradientProbe, loss: Tensor) -> bool:
    probe.before_backward()
    loss.backward()
    return probe.after_backward()


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def loss_of(watched: nn.Module) -> Tensor:
    return watched(torch.ones(5, 3)).square().sum()


def test_own_and_foreign_backward_passes_are_told_apart() -> None:
    ours, theirs = model(), model()
    probe = GradientProbe(dict(ours.named_parameters()))
    for set_to_none in (True, False, True, False, False):
        assert backward(probe, loss_of(ours))
        assert not backward(probe, loss_of(theirs))
        ours.zero_grad(set_to_none)
        theirs.zero_grad(set_to_none)


def test_a_branch_that_is_not_always_taken() -> None:
    first, second = nn.Linear(3, 1), nn.Linear(3, 1)
    probe = GradientProbe({"a": first.weight, "b": second.weight})
    found = [backward(probe, layer(torch.ones(2, 3)).sum()) for layer in (second,) * 4 + (first, second, first, first)]
    # One parameter was trusted to stand for all: that it does not is found out once, at the price of that one pass.
    assert found == [True] * 4 + [False] + [True] * 3


def test_unclipped_gradients_are_not_copied() -> None:
    watched = model()
    probe = GradientProbe(dict(watched.named_parameters()))
    for step in range(3):
        watched.zero_grad()
        backward(probe, loss_of(watched))
        probe.record()
        raw, applied, changed = probe.gradients()
        assert not changed and raw is not None
        for name, parameter in watched.named_parameters():
            assert parameter.grad is not None and raw[name].data_ptr() == applied[name].data_ptr() == parameter.grad.data_ptr()
        assert not probe._keep_copies, step


def test_clipping_is_noticed_and_the_raw_gradient_kept() -> None:
    watched = model()
    probe = GradientProbe(dict(watched.named_parameters()))
    for _ in range(3):
        watched.zero_grad()
        backward(probe, loss_of(watched))
        true = {name: parameter.grad.clone() for name, parameter in watched.named_parameters() if parameter.grad is not None}
        probe.record()
        nn.utils.clip_grad_norm_(watched.parameters(), 0.1)
        raw, applied, changed = probe.gradients()
        assert changed and raw is not None
        assert all(torch.equal(raw[name], true[name]) for name in true)
        assert sum(values.square().sum().item() for values in applied.values()) < 0.0101


def test_clipping_that_begins_later_is_lost_once_and_then_kept() -> None:
    watched = model()
    probe = GradientProbe(dict(watched.named_parameters()))
    found = []
    for step in range(5):
        watched.zero_grad()
        backward(probe, loss_of(watched))
        probe.record()
        if step >= 2:
            nn.utils.clip_grad_norm_(watched.parameters(), 0.1)
        raw, _, changed = probe.gradients()
        found.append((changed, raw is not None))
    assert found == [(False, True), (False, True), (True, False), (True, True), (True, True)]


def test_a_gradient_that_was_replaced_counts_as_changed() -> None:
    watched = model()
    probe = GradientProbe(dict(watched.named_parameters()))
    backward(probe, loss_of(watched))
    probe.record()
    watched[0].weight.grad = torch.zeros(4, 3)
    _, applied, changed = probe.gradients()
    assert changed and applied["0.weight"].abs().sum() == 0


def test_a_parameter_without_gradient_is_missing() -> None:
    watched = model()
    watched[0].weight.requires_grad_(False)
    probe = GradientProbe(dict(watched.named_parameters()))
    assert backward(probe, loss_of(watched))
    probe.record()
    raw, applied, _ = probe.gradients()
    assert raw is not None and "0.weight" not in raw and set(raw) == set(applied) == {"0.bias", "2.weight", "2.bias"}


def test_sparse_gradients_are_made_dense() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    probe = GradientProbe({"weight": embedding.weight})
    assert backward(probe, embedding(torch.tensor([1, 3])).sum())
    probe.record()
    raw, applied, changed = probe.gradients()
    assert not changed and raw is not None
    assert raw["weight"].layout == applied["weight"].layout == torch.strided
    assert raw["weight"].sum(1).tolist() == [0, 2, 0, 2, 0]
