"""What is remembered of a measured step until the next one: how far it went, and how the loss sloped along it where it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cockpit_lite.norms import in_pieces
from cockpit_lite.packed import flats, packed


@dataclass(frozen=True)
class LastStep:
    """The step before the one under way, from theta_t to theta_{t+1}.

    Attributes:
        index: Its number t.
        update: d = theta_{t+1} - theta_t, by parameter name.
        loss: The mini-batch loss at theta_t.
        slope: d'G, its derivative there along the step.
        versions: What :func:`versions` said when the step had ended.
        sample_losses: What every sample contributed to the loss at theta_t, if that was measured and known.
    """

    index: int
    update: Mapping[str, Tensor]
    loss: Tensor
    slope: Tensor
    versions: tuple[int, ...]
    sample_losses: Tensor | None = None


def inner_product(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product over the parameters that both have, a scalar tensor in single precision or better."""
    pair = flats(left, right)
    if pair is not None:
        return _product(*pair)
    products = []
    for name, a in left.items():  # in this order, so that rounding is the same in every run
        b = right.get(name)
        if b is not None:
            products.append(_product(a, b))
    if not products:
        return torch.zeros(())
    device = products[0].device
    return torch.stack([product if product.device == device else product.to(device) for product in products]).sum()


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype is b.dtype is torch.float32 and a.layout is b.layout is torch.strided:  # nearly always, and much is asked below
        parts = [torch.dot(*pair) for pair in zip(in_pieces(a), in_pieces(b), strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum()
    a, b = (value.to_dense() if value.is_sparse else value for value in (a, b))
    dtype = torch.promote_types(a.dtype, torch.float32)
    # vdot conjugates the gradient, if it is complex
    return torch.vdot(b.to(dtype).reshape(-1), a.to(dtype).reshape(-1)).real


def versions(parameters: Mapping[str, nn.Parameter]) -> tuple[int, ...]:
    """Return how often each parameter was changed in place: equal later means that nobody has touched them in between."""
    return tuple(parameter._version for parameter in parameters.values())


class GradientAtStart:
    """The gradient where a step begins, for the slope along the step, which is known only when it has been taken.

    A closure, or an optimizer that works in place, may overwrite it meanwhile. That is noticed, by version and never by value;
    only where it has happened, or may because this is the first look, is a copy kept on the next steps.
    """

    def __init__(self) -> None:
        self._copies = True
        self._gradient: Mapping[str, Tensor] = {}
        self._watched: list[tuple[Tensor, int]] = []

    def keep(self, gradient: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Keep a gradient until :meth:`unchanged` asks for it; return what is kept."""
        self._watched = [(value, value._version) for value in gradient.values()]
        self._gradient = packed(gradient) if gradient and self._copies else gradient
        return self._gradient

    def unchanged(self) -> Mapping[str, Tensor] | None:
        """Return the gradient as it was when it was kept, and forget it; None if there was none, or it is lost."""
        gradient, self._gradient = self._gradient, {}
        watched, self._watched = self._watched, []
        changed = any(value._version != version for value, version in watched)
        lost = not watched or (changed and not self._copies)
        if watched:
            self._copies = changed
        return None if lost else gradient
