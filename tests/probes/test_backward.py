"""Every backward pass is seen, and ``torch.autograd.backward`` is the user's own again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cockpit_lite.probes.backward import listen, stop_listening


class Ear:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[float], list[Any]]] = []

    def before_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        self.heard.append(("before", [tensor.sum().item() for tensor in tensors], list(gradients)))

    def after_backward(self, tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        self.heard.append(("after", [tensor.sum().item() for tensor in tensors], list(gradients)))

    def error_in_backward(self, *_: Any) -> None:
        """Nothing to note."""


@pytest.fixture
def ear() -> Iterator[Ear]:
    original = torch.autograd.backward
    one = Ear()
    listen(one)
    yield one
    stop_listening(one)
    assert torch.autograd.backward is original


def leaf() -> Tensor:
    return torch.tensor([1.0, 2.0], requires_grad=True)


def test_a_scalar_loss(ear: Ear) -> None:
    (leaf() * 2).sum().backward()
    assert ear.heard == [("before", [6.0], [None]), ("after", [6.0], [None])]


def test_roots_with_seeds(ear: Ear) -> None:
    seed = torch.ones(2)
    torch.autograd.backward([leaf() * 2, leaf().sum()], [seed, None])
    assert [(when, roots) for when, roots, _ in ear.heard] == [("before", [6.0, 3.0]), ("after", [6.0, 3.0])]
    assert ear.heard[0][2][0] is seed and ear.heard[0][2][1] is None


def test_a_backward_that_raises_has_no_end(ear: Ear) -> None:
    loss = leaf().prod()
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert [when for when, _, _ in ear.heard] == ["before", "after", "before"]
    leaf().sum().backward()  # and the next one is heard again
    assert [when for when, _, _ in ear.heard][-2:] == ["before", "after"]


def test_a_backward_inside_a_backward_is_no_new_root(ear: Ear) -> None:
    layer = nn.Linear(2, 2)
    checkpoint(layer, leaf(), use_reentrant=True).sum().backward()
    assert [when for when, _, _ in ear.heard] == ["before", "after"]


def test_autograd_grad_is_not_heard(ear: Ear) -> None:
    weights = leaf()
    torch.autograd.grad(weights.sum(), weights)
    assert ear.heard == []


def test_arguments_are_passed_on(ear: Ear) -> None:
    weights = leaf()
    loss = weights.pow(3).sum()
    loss.backward(retain_graph=True)
    loss.backward(create_graph=False, inputs=[weights])
    assert weights.grad is not None and weights.grad.tolist() == [6.0, 24.0]


def test_the_last_listener_puts_the_function_back() -> None:
    original = torch.autograd.backward
    first, second = Ear(), Ear()
    listen(first)
    listen(second)
    stop_listening(first)
    leaf().sum().backward()
    assert first.heard == [] and len(second.heard) == 2
    stop_listening(second)
    assert torch.autograd.backward is original


def test_who_has_wrapped_us_meanwhile_stays() -> None:
    original = torch.autograd.backward
    ear = Ear()
    listen(ear)
    ours = torch.autograd.backward
    calls = []

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return ours(*args, **kwargs)

    torch.autograd.backward = theirs
    try:
        stop_listening(ear)
        assert torch.autograd.backward is theirs
        weights = leaf()
        weights.sum().backward()  # through their wrapper and what is left of ours
        assert len(calls) == 1 and ear.heard == [] and weights.grad is not None
    finally:
        torch.autograd.backward = original
